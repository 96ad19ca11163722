//! What an answer may call: `tools`, `tool_choice` and `parallel_tool_calls` as OpenAI has them. Pure.

use super::fields::{Fields, NO_NAME, invalid, is_name};
use crate::dialect::{Choice, Tool};
use crate::server::error::{ApiError, Code};
use serde_json::{Map, Value, json};

/// More tools than this are a mistake.
const MAX_TOOLS: usize = 128;

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ToolUse {
    /// What the model is told about. Empty: nothing.
    pub(super) told: Vec<Tool>,
    /// What it may call of that.
    pub(super) callable: Vec<Tool>,
    pub(super) choice: Choice,
    /// Whether it may call several at once.
    pub(super) parallel: bool,
}

/// Takes the fields that say what may be called.
pub(super) fn take_tools(fields: &mut Fields) -> Result<ToolUse, ApiError> {
    let tools = match fields.take("tools") {
        None => Vec::new(),
        Some(Value::Array(tools)) if tools.len() <= MAX_TOOLS => {
            let tools = tools.into_iter().enumerate();
            tools
                .map(|(index, tool)| take_tool(index, tool))
                .collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => {
            return Err(invalid(
                "tools",
                &format!("must be a list of at most {MAX_TOOLS} tools"),
            ));
        }
    };
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let problem = format!("`{}` is there twice", tool.name);
            return Err(invalid(format!("tools[{index}].function.name"), &problem));
        }
    }
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let chosen = take_choice(fields.take("tool_choice"), &tools)?;
    Ok(match chosen {
        Chosen::Nothing => ToolUse {
            told: vec![],
            callable: vec![],
            choice: Choice::Auto,
            parallel,
        },
        Chosen::Any(choice) => ToolUse {
            callable: tools.clone(),
            told: tools,
            choice,
            parallel,
        },
        Chosen::One(tool) => ToolUse {
            told: tools,
            callable: vec![tool],
            choice: Choice::Required,
            // One call was asked for.
            parallel: false,
        },
    })
}

enum Chosen {
    Nothing,
    Any(Choice),
    One(Tool),
}

fn take_choice(choice: Option<Value>, tools: &[Tool]) -> Result<Chosen, ApiError> {
    let wrong = || {
        let problem = r#"must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}"#;
        invalid("tool_choice", problem)
    };
    let chosen = match choice {
        None => Chosen::Any(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Chosen::Any(Choice::Auto),
            "none" => Chosen::Nothing,
            "required" => Chosen::Any(Choice::Required),
            _ => return Err(wrong()),
        },
        Some(Value::Object(object)) => {
            let mut object = Fields::new(object);
            let kind = object.string("type").map_err(|_| wrong())?;
            let Some(Value::Object(function)) = object.take("function") else {
                return Err(wrong());
            };
            let mut function = Fields::new(function);
            let name = function.string("name").map_err(|_| wrong())?;
            let name = name.filter(|_| kind.as_deref() == Some("function")).ok_or_else(wrong)?;
            function.finish(&[])?;
            object.finish(&[])?;
            let tool = tools.iter().find(|tool| tool.name == name);
            let tool = tool.ok_or_else(|| invalid("tool_choice", "names a function that is not in `tools`"))?;
            Chosen::One(tool.clone())
        }
        Some(_) => return Err(wrong()),
    };
    match chosen {
        Chosen::Any(Choice::Required) if tools.is_empty() => {
            Err(invalid("tool_choice", "wants a call, but there are no `tools`"))
        }
        chosen => Ok(chosen),
    }
}

fn take_tool(index: usize, tool: Value) -> Result<Tool, ApiError> {
    let at = |field: &str| format!("tools[{index}]{field}");
    let Value::Object(tool) = tool else {
        return Err(invalid(at(""), "must be an object"));
    };
    let mut fields = Fields::new(tool);
    match fields.take("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(_)) => {
            let message = format!("`{}`: only functions are supported by this server", at(".type"));
            return Err(ApiError::new(Code::UnsupportedParameter, message).param(at(".type")));
        }
        _ => return Err(invalid(at(".type"), "must be \"function\"")),
    }
    let Some(Value::Object(function)) = fields.take("function") else {
        return Err(invalid(at(".function"), "must be an object"));
    };
    fields.finish(&[]).map_err(|error| error.param(at("")))?;
    take_function(Fields::new(function), &at(".function"))
}

fn take_function(mut fields: Fields, at: &str) -> Result<Tool, ApiError> {
    let at = |field: &str| format!("{at}{field}");
    let name = match fields.take("name") {
        Some(Value::String(name)) if is_name(&name) => name,
        _ => return Err(invalid(at(".name"), NO_NAME)),
    };
    let description = match fields.take("description") {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err(invalid(at(".description"), "must be a string")),
    };
    // Schemas are followed in any case.
    if !matches!(fields.take("strict"), None | Some(Value::Bool(_))) {
        return Err(invalid(at(".strict"), "must be true or false"));
    }
    let parameters = match fields.take("parameters") {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) => Value::Object(of_object(schema, &at(".parameters"))?),
        Some(_) => return Err(invalid(at(".parameters"), "must be a JSON schema of an object")),
    };
    fields.finish(&[]).map_err(|error| error.param(at("")))?;
    let mut function = Map::from_iter([("name".to_owned(), json!(name))]);
    function.extend(description.map(|text| ("description".to_owned(), json!(text))));
    function.insert("parameters".to_owned(), parameters.clone());
    Ok(Tool {
        name,
        parameters,
        definition: json!({"type": "function", "function": function}),
    })
}

/// A schema of an object: arguments are nothing else.
fn of_object(mut schema: Map<String, Value>, at: &str) -> Result<Map<String, Value>, ApiError> {
    match schema.get("type") {
        None => {
            schema.insert("type".to_owned(), json!("object"));
            Ok(schema)
        }
        Some(kind) if kind == "object" => Ok(schema),
        Some(_) => Err(invalid(format!("{at}.type"), "must be \"object\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(value: Value) -> Result<ToolUse, ApiError> {
        let Value::Object(object) = value else { panic!() };
        let mut fields = Fields::new(object);
        let tools = take_tools(&mut fields)?;
        fields.finish(&[])?;
        Ok(tools)
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "strict": true, "description": "d", "parameters": {"properties": {}}}})
    }

    fn names(tools: &[Tool]) -> Vec<&str> {
        tools.iter().map(|tool| tool.name.as_str()).collect()
    }

    #[test]
    fn each_choice_is_understood() {
        let tools = json!([function("a"), function("b-2")]);
        for (choice, told, callable, required) in [
            (json!(null), vec!["a", "b-2"], vec!["a", "b-2"], Choice::Auto),
            (json!("auto"), vec!["a", "b-2"], vec!["a", "b-2"], Choice::Auto),
            (json!("required"), vec!["a", "b-2"], vec!["a", "b-2"], Choice::Required),
            (json!("none"), vec![], vec![], Choice::Auto),
            (
                json!({"type": "function", "function": {"name": "b-2"}}),
                vec!["a", "b-2"],
                vec!["b-2"],
                Choice::Required,
            ),
        ] {
            let taken = take(json!({"tools": tools, "tool_choice": choice})).unwrap();
            assert_eq!(names(&taken.told), told, "{choice}");
            assert_eq!((names(&taken.callable), taken.choice), (callable, required), "{choice}");
        }
        assert!(
            take(json!({"tools": [], "tool_choice": "auto"}))
                .unwrap()
                .told
                .is_empty()
        );
    }

    #[test]
    fn definitions_come_out_as_templates_expect_them() {
        let taken = take(json!({"tools": [function("a"), {"type": "function", "function": {"name": "b"}}]})).unwrap();
        assert_eq!(
            taken.told[0].definition,
            json!({"type": "function", "function": {"name": "a", "description": "d", "parameters": {"properties": {}, "type": "object"}}})
        );
        assert_eq!(taken.told[1].parameters["additionalProperties"], false);
        assert!(taken.parallel);
    }

    #[test]
    fn mistakes_are_named() {
        let tools = json!([function("a")]);
        for (request, param) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": ["a"]}), "tools[0]"),
            (json!({"tools": [{}]}), "tools[0].type"),
            (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
                "tools[0].function.name",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}),
                "tools[0].function.parameters.type",
            ),
            (
                json!({"tools": [function("a"), function("a")]}),
                "tools[1].function.name",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a", "typo": 1}}]}),
                "tools[0].function",
            ),
            (json!({"tools": tools, "tool_choice": "some"}), "tool_choice"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (
                json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice",
            ),
            (json!({"tools": tools, "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            let body = serde_json::to_value(take(request.clone()).unwrap_err().body()).unwrap();
            assert_eq!(body["error"]["param"], param, "{request} {body}");
        }
    }
}
