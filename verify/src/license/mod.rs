//! Licences: what a model says that it is under, and whether that is allowed.
//!
//! A licence is named by an SPDX expression; one that SPDX does not list (Llama's, Gemma's and the like) is a
//! `LicenseRef-` with the name that model hubs give it. What is found is a declaration: no signature vouches for it
//! unless one covers the file that it is in.

mod found;
mod text;

pub use found::{Evidence, find};

use crate::refusal::{Reason, Refusal};
use spdx::{Expression, LicenseReq, Licensee};

/// Licences that are allowed, and some that are not.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Empty: whatever is not denied.
    allow: Vec<Licensee>,
    deny: Vec<Licensee>,
}

/// A text that is no licence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no licence: expected an SPDX identifier such as Apache-2.0, or LicenseRef- and a name ({problem})"
)]
pub struct LicenseFormatError {
    text: String,
    problem: String,
}

impl Terms {
    /// Reads lists of SPDX identifiers and `LicenseRef-…`.
    ///
    /// # Errors
    /// [`LicenseFormatError`] with the first text that is no licence.
    pub fn parse(allow: &[String], deny: &[String]) -> Result<Self, LicenseFormatError> {
        let parse = |texts: &[String]| texts.iter().map(|text| licensee(text)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            allow: parse(allow)?,
            deny: parse(deny)?,
        })
    }

    /// Whether nothing is demanded.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether a model under this licence may be used. Of alternatives (`MIT OR GPL-2.0-only`) one that is allowed
    /// suffices; of licences that hold together (`AND`) all must be.
    ///
    /// # Errors
    /// `LicenseNotAllowed` with what is allowed.
    pub fn check(&self, license: &License) -> Result<(), Refusal> {
        let satisfied = |list: &[Licensee], wanted: &LicenseReq| list.iter().any(|one| one.satisfies(wanted));
        let is_allowed = |wanted: &LicenseReq| {
            (self.allow.is_empty() || satisfied(&self.allow, wanted)) && !satisfied(&self.deny, wanted)
        };
        if license.0.evaluate(is_allowed) {
            return Ok(());
        }
        let list = |list: &[Licensee]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let expected = match (self.allow.is_empty(), self.deny.is_empty()) {
            (true, _) => format!("none of {}", list(&self.deny)),
            (false, true) => list(&self.allow),
            (false, false) => format!("{} and none of {}", list(&self.allow), list(&self.deny)),
        };
        Err(Refusal::new(
            Reason::LicenseNotAllowed,
            "the model's licence is not one that may be used; choose another model, or have this licence approved",
        )
        .values(expected, license))
    }
}

fn licensee(text: &str) -> Result<Licensee, LicenseFormatError> {
    check_references(text)?;
    Licensee::parse(text.trim()).map_err(|error| malformed(text, error.reason.to_string()))
}

/// The parser takes a reference without a name.
fn check_references(text: &str) -> Result<(), LicenseFormatError> {
    let mut words = text.split(|character: char| character.is_whitespace() || matches!(character, '(' | ')'));
    if words.any(|word| word == "LicenseRef-") {
        return Err(malformed(text, "a name is missing behind LicenseRef-".to_owned()));
    }
    Ok(())
}

fn malformed(text: &str, problem: String) -> LicenseFormatError {
    LicenseFormatError {
        text: text.chars().take(100).collect(),
        problem,
    }
}

/// A licence in its one spelling.
#[derive(Debug, Clone, PartialEq)]
pub struct License(Expression);

impl License {
    /// Reads an SPDX expression.
    ///
    /// # Errors
    /// [`LicenseFormatError`] when it is none.
    pub fn parse(text: &str) -> Result<Self, LicenseFormatError> {
        check_references(text)?;
        let parsed = Expression::parse(text.trim());
        parsed
            .map(Self)
            .map_err(|error| malformed(text, error.reason.to_string()))
    }

    /// Reads what a model's files say: an SPDX expression in any case, or the name of a model hub. `None`: it says
    /// nothing (`other`, `unknown`), or nothing that can be a name.
    pub fn of_declaration(text: &str) -> Option<Self> {
        let text = text.trim();
        if matches!(
            text.to_ascii_lowercase().as_str(),
            "" | "other" | "unknown" | "none" | "proprietary"
        ) {
            return None;
        }
        if let Ok(license) = Self::parse(text) {
            return Some(license);
        }
        let listed = spdx::identifiers::LICENSES
            .iter()
            .find(|one| one.name.eq_ignore_ascii_case(text));
        let name = match listed {
            Some(listed) => listed.name.to_owned(),
            None => format!("LicenseRef-{}", text.to_ascii_lowercase().replace([' ', '_'], "-")),
        };
        Self::parse(&name).ok()
    }
}

impl std::fmt::Display for License {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The licence on which everything that was found agrees.
///
/// # Errors
/// `LicenseUnknown` when nothing names one, `LicenseConflict` when two declarations differ.
pub fn agreed(evidence: &[Evidence]) -> Result<License, Refusal> {
    let mut named = evidence.iter().filter_map(|one| Some((one, one.license.as_ref()?)));
    let Some((first, license)) = named.next() else {
        let seen: Vec<_> = evidence.iter().map(Evidence::to_string).collect();
        let seen = if seen.is_empty() {
            "nothing".to_owned()
        } else {
            seen.join("; ")
        };
        return Err(Refusal::new(
            Reason::LicenseUnknown,
            "the model does not say which licence it is under; say it in the manifest, or add its licence file",
        )
        .values("an SPDX expression or a known licence text", seen));
    };
    match named.find(|(_, other)| *other != license) {
        None => Ok(license.clone()),
        Some((other, _)) => Err(Refusal::new(
            Reason::LicenseConflict,
            "the model names two different licences; find out which one holds, and say it in the manifest",
        )
        .in_file(&other.file)
        .values(first, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(allow: &[&str], deny: &[&str]) -> Terms {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Terms::parse(&owned(allow), &owned(deny)).unwrap()
    }

    #[test]
    fn declarations_have_one_spelling() {
        let table = [
            ("apache-2.0", Some("Apache-2.0")),
            ("Apache-2.0", Some("Apache-2.0")),
            (" MIT ", Some("MIT")),
            ("cc-by-nc-4.0", Some("CC-BY-NC-4.0")),
            ("llama3.1", Some("LicenseRef-llama3.1")),
            ("Gemma", Some("LicenseRef-gemma")),
            ("qwen research", Some("LicenseRef-qwen-research")),
            ("MIT OR Apache-2.0", Some("MIT OR Apache-2.0")),
            ("LicenseRef-llama3", Some("LicenseRef-llama3")),
            ("other", None),
            ("", None),
            ("a\nb", None),
            ("ünknown", None),
        ];
        for (text, expected) in table {
            let found = License::of_declaration(text).map(|license| license.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn terms_decide_by_alternatives_and_conjunctions() {
        let table: [(&[&str], &[&str], &str, bool); 11] = [
            (&[], &[], "MIT", true),
            (&["Apache-2.0", "MIT"], &[], "MIT", true),
            (&["Apache-2.0"], &[], "MIT", false),
            (&["Apache-2.0"], &[], "MIT OR Apache-2.0", true),
            (&["Apache-2.0"], &[], "MIT AND Apache-2.0", false),
            (&[], &["LicenseRef-llama3"], "LicenseRef-llama3", false),
            (&[], &["LicenseRef-llama3"], "LicenseRef-llama3.1", true),
            (&["MIT"], &["MIT"], "MIT", false),
            (&["LicenseRef-gemma"], &[], "LicenseRef-gemma", true),
            (&["GPL-2.0-only"], &[], "GPL-3.0-only", false),
            (&["Apache-2.0"], &[], "Apache-2.0 WITH LLVM-exception", false),
        ];
        for (allow, deny, license, expected) in table {
            let result = terms(allow, deny).check(&License::parse(license).unwrap());
            assert_eq!(result.is_ok(), expected, "{allow:?} {deny:?} {license}");
            if let Err(refusal) = result {
                assert_eq!(refusal.reason, Reason::LicenseNotAllowed);
                assert_eq!(refusal.got.as_deref(), Some(license));
            }
        }
        assert!(terms(&[], &[]).is_empty());
        assert!(!terms(&[], &["MIT"]).is_empty());
    }

    #[test]
    fn lists_take_licences_only() {
        for text in ["apache", "Apache 2.0", "MIT OR ISC", "", "LicenseRef-"] {
            let error = Terms::parse(&[text.to_owned()], &[]).unwrap_err();
            assert!(error.to_string().contains("SPDX identifier"), "{error}");
        }
    }

    #[test]
    fn what_is_found_must_agree() {
        let evidence = |file: &str, license: Option<&str>| Evidence {
            file: file.to_owned(),
            field: "license".to_owned(),
            text: "…".to_owned(),
            license: license.map(|text| License::parse(text).unwrap()),
        };
        let agree = [
            evidence("LICENSE", None),
            evidence("config.json", Some("MIT")),
            evidence("README.md", Some("MIT")),
        ];
        assert_eq!(agreed(&agree).unwrap().to_string(), "MIT");
        assert_eq!(agreed(&agree[..1]).unwrap_err().reason, Reason::LicenseUnknown);
        assert_eq!(agreed(&[]).unwrap_err().got.as_deref(), Some("nothing"));
        let conflict = agreed(&[agree[1].clone(), evidence("README.md", Some("ISC"))]).unwrap_err();
        assert_eq!(conflict.reason, Reason::LicenseConflict);
        assert_eq!(conflict.file.as_deref(), Some("README.md"));
    }
}
