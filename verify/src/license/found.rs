//! Where a model says which licence it is under: its GGUF metadata, its configuration, its model card, its licence
//! files.

use super::{License, text};
use crate::VerifiedModel;
use crate::refusal::Refusal;
use crate::structure::gguf::Gguf;
use crate::structure::json;
use std::fmt;

/// The longest text that is looked at: licences and model cards are shorter.
const MAX_TEXT: u64 = 1 << 20;
/// Files that hold a licence's text, by the start of their names.
const TEXTS: [&str; 3] = ["license", "licence", "copying"];
/// The card of a model, with its fields between two lines of `---` at the top.
const CARD: &str = "README.md";

/// One place where a licence is named.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The file.
    pub file: String,
    /// The key or field in it; `text` for a licence's text.
    pub field: String,
    /// What is there, at most 100 characters.
    pub text: String,
    /// The licence. Absent when the text names none that is known.
    pub license: Option<License>,
}

impl fmt::Display for Evidence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            field,
            text,
            license,
        } = self;
        match license {
            Some(license) => write!(formatter, "{license} ({field} of {file})"),
            None => write!(formatter, "{text:?} ({field} of {file})"),
        }
    }
}

/// Everything that a model says about its licence. `header` is that of a GGUF file with its name.
///
/// # Errors
/// Those of reading a file. What cannot be understood is evidence without a licence, not an error.
pub fn find(model: &VerifiedModel, header: Option<(&str, &Gguf)>) -> Result<Vec<Evidence>, Refusal> {
    let mut found = Vec::new();
    if let Some((file, gguf)) = header {
        let field = |key| gguf.get(key).and_then(crate::structure::gguf::Value::as_str);
        found.extend(declared(
            file,
            ("general.license", field("general.license")),
            ("general.license.name", field("general.license.name")),
        ));
    }
    let names: Vec<_> = model.files().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    for (name, _) in names.iter().filter(|(_, bytes)| *bytes <= MAX_TEXT) {
        if name == "config.json" {
            let config = json::parse(&model.read(name)?).unwrap_or_default();
            let field = |key: &str| config.get(key).and_then(serde_json::Value::as_str);
            found.extend(declared(
                name,
                ("license", field("license")),
                ("license_name", field("license_name")),
            ));
        } else if name == CARD {
            found.extend(of_card(name, &String::from_utf8_lossy(&model.read(name)?)));
        } else if is_license_text(name) {
            found.push(of_text(name, &String::from_utf8_lossy(&model.read(name)?)));
        }
    }
    Ok(found)
}

fn is_license_text(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    TEXTS.iter().any(|start| lower.starts_with(start)) && !name.contains('/')
}

fn of_text(file: &str, content: &str) -> Evidence {
    let license = text::recognise(content).and_then(|name| License::parse(name).ok());
    let first = content.lines().map(str::trim).find(|line| !line.is_empty());
    evidence(file, "text", first.unwrap_or_default(), license)
}

/// A licence and, where that only says `other`, its name.
fn declared(file: &str, license: (&str, Option<&str>), name: (&str, Option<&str>)) -> Option<Evidence> {
    let of = |(field, text): (&str, Option<&str>)| {
        let text = text?;
        Some(evidence(file, field, text, License::of_declaration(text)))
    };
    match (of(license), of(name)) {
        (Some(found), Some(named)) if found.license.is_none() && named.license.is_some() => Some(named),
        (found, named) => found.or(named),
    }
}

fn evidence(file: &str, field: &str, text: &str, license: Option<License>) -> Evidence {
    Evidence {
        file: file.to_owned(),
        field: field.to_owned(),
        text: text.chars().take(100).collect(),
        license,
    }
}

/// The fields `license` and `license_name` of a card's front matter, each a word or a list of words. Of a list every
/// licence counts: a card does not say whether they are alternatives.
fn of_card(file: &str, content: &str) -> Vec<Evidence> {
    let mut lines = content.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let lines: Vec<_> = lines.take_while(|line| line.trim_end() != "---").collect();
    let name = values(&lines, "license_name").into_iter().next();
    let of = |license: &String| {
        declared(
            file,
            ("license", Some(license.as_str())),
            ("license_name", name.as_deref()),
        )
    };
    values(&lines, "license").iter().filter_map(of).collect()
}

fn values(lines: &[&str], key: &str) -> Vec<String> {
    let clean = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let Some((at, value)) = lines.iter().enumerate().find_map(|(at, line)| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?;
        Some((at, value.trim()))
    }) else {
        return Vec::new();
    };
    let list = value.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
    let found: Vec<_> = match list {
        Some(list) => list.split(',').map(clean).collect(),
        None if value.is_empty() => {
            let items = lines[at + 1..]
                .iter()
                .map_while(|line| line.trim_start().strip_prefix("- "));
            items.map(clean).collect()
        }
        None => vec![clean(value)],
    };
    found.into_iter().filter(|value| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structure::gguf::Value;
    use std::collections::BTreeMap;
    use std::fs;

    fn model(files: &[(&str, &str)]) -> (tempfile::TempDir, VerifiedModel) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            fs::write(folder.path().join(name), content).unwrap();
        }
        let model = VerifiedModel::open(folder.path(), None, &mut |_, _| ()).unwrap();
        (folder, model)
    }

    fn told(found: &[Evidence]) -> Vec<String> {
        found.iter().map(Evidence::to_string).collect()
    }

    #[test]
    fn every_place_is_looked_at() {
        let (_folder, model) = model(&[
            (
                "LICENSE.txt",
                "MIT License\n\nPermission is hereby granted, free of charge, to …\nTHE SOFTWARE IS PROVIDED \"AS IS\"",
            ),
            (
                "README.md",
                "---\nlanguage: en\nlicense: mit\n---\n# A model\nlicense: gpl\n",
            ),
            ("config.json", "{\"license\": \"MIT\"}"),
            ("docs/LICENSE", "of something else"),
            ("model.safetensors", "x"),
        ]);
        let gguf = Gguf {
            metadata: BTreeMap::from([("general.license".to_owned(), Value::String("apache-2.0".to_owned()))]),
            tensors: vec![],
        };
        assert_eq!(
            told(&find(&model, Some(("m.gguf", &gguf))).unwrap()),
            [
                "Apache-2.0 (general.license of m.gguf)",
                "MIT (text of LICENSE.txt)",
                "MIT (license of README.md)",
                "MIT (license of config.json)",
            ]
        );
    }

    #[test]
    fn model_without_a_word_has_no_evidence() {
        let (_folder, model) = model(&[("config.json", "{}"), ("README.md", "# A model"), ("x.safetensors", "")]);
        assert_eq!(find(&model, None).unwrap(), []);
    }

    #[test]
    fn cards_are_read_in_all_their_forms() {
        let table: [(&str, &[&str]); 8] = [
            ("---\nlicense: apache-2.0\n---\n", &["Apache-2.0 (license of R)"]),
            ("---\nlicense: \"llama3\"\n---\n", &["LicenseRef-llama3 (license of R)"]),
            (
                "---\nlicense: other\nlicense_name: qwen-research\n---\n",
                &["LicenseRef-qwen-research (license_name of R)"],
            ),
            (
                "---\nlicense:\n- mit\n- apache-2.0\ntags: []\n---\n",
                &["MIT (license of R)", "Apache-2.0 (license of R)"],
            ),
            (
                "---\nlicense: [mit, isc]\n---\n",
                &["MIT (license of R)", "ISC (license of R)"],
            ),
            ("---\nlicense: other\n---\n", &["\"other\" (license of R)"]),
            ("license: mit\n", &[]),
            ("", &[]),
        ];
        for (content, expected) in table {
            assert_eq!(told(&of_card("R", content)), expected, "{content:?}");
        }
    }

    #[test]
    fn unknown_text_is_evidence_without_a_licence() {
        let found = of_text("LICENSE", "\n  Our own terms  \nand more");
        assert_eq!((found.text.as_str(), found.license), ("Our own terms", None));
    }
}
