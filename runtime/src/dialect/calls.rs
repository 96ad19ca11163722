//! The ways in which models write calls of tools.

/// A way to write calls: everything in it but the names and the arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    /// What begins the calls in an answer. Absent: they are the answer from its first character on.
    pub(super) trigger: Option<&'static str>,
    /// From there to the first name.
    pub(super) open: &'static str,
    /// What stands between a name and an identifier of [`SHORT_ID`] letters and digits. Absent: there are no identifiers.
    pub(super) id: Option<&'static str>,
    /// Between a name, or its identifier, and the arguments, which are a JSON object.
    pub(super) arguments: &'static str,
    /// Behind the arguments.
    pub(super) end: &'static str,
    /// From there to the name of another call. Absent: there is one call at most.
    pub(super) next: Option<&'static str>,
    /// Behind the last call.
    pub(super) close: &'static str,
    /// What may be control tokens in it.
    pub(super) markers: &'static [&'static str],
    /// Whether identifiers of calls have nine letters and digits: templates of this kind refuse others.
    pub(super) has_short_ids: bool,
}

/// Letters and digits of an identifier where a template insists on it.
pub const SHORT_ID: usize = 9;

/// Hermes, Qwen 2.5, Qwen 3, `SmolLM3`.
pub(super) const HERMES: Syntax = Syntax {
    trigger: Some("<tool_call>"),
    open: "\n{\"name\": \"",
    id: None,
    arguments: "\", \"arguments\": ",
    end: "}\n</tool_call>",
    next: Some("\n<tool_call>\n{\"name\": \""),
    close: "",
    markers: &["<tool_call>", "</tool_call>"],
    has_short_ids: false,
};

/// Mistral 7B (from its third version), Nemo, Small 3, Large.
pub(super) const MISTRAL: Syntax = Syntax {
    trigger: Some("[TOOL_CALLS]"),
    open: "[{\"name\": \"",
    id: None,
    arguments: "\", \"arguments\": ",
    end: "}",
    next: Some(", {\"name\": \""),
    close: "]",
    markers: &["[TOOL_CALLS]"],
    has_short_ids: true,
};

/// Mistral Small 3.2.
pub(super) const MISTRAL_NUMBERED: Syntax = Syntax {
    id: Some("[CALL_ID]"),
    markers: &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
    ..MISTRAL_NAMED
};

/// Devstral, Magistral, Ministral 3.
pub(super) const MISTRAL_NAMED: Syntax = Syntax {
    trigger: Some("[TOOL_CALLS]"),
    open: "",
    id: None,
    arguments: "[ARGS]",
    end: "",
    next: Some("[TOOL_CALLS]"),
    close: "",
    markers: &["[TOOL_CALLS]", "[ARGS]"],
    has_short_ids: true,
};

/// Llama 3.1, 3.2 and 3.3. Their template refuses an answer with several calls.
pub(super) const LLAMA: Syntax = Syntax {
    trigger: None,
    open: "{\"name\": \"",
    id: None,
    arguments: "\", \"parameters\": ",
    end: "}",
    next: None,
    close: "",
    markers: &[],
    has_short_ids: false,
};
