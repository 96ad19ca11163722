//! What `--source` may say, and which relative paths a source may name. Pure.

use super::error::FetchError;
use super::oci::Reference;
use crate::model::Format;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use url::Url;

/// Files that belong to a model when nobody says otherwise: weights, tokenizer, configuration, template and licence,
/// at the top level. Other formats of the same weights (`*.bin`, `onnx/`) are not among them.
const DEFAULT_FILES: [&str; 10] = [
    "*.gguf",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
];

/// Longer paths than this are of no model.
const MAX_PATH_BYTES: usize = 1024;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A repository of a model hub.
    Hub { owner: String, name: String },
    /// An artifact in a registry.
    Registry(Reference),
    /// The objects of a bucket below a prefix, or one of them.
    Bucket { bucket: String, prefix: String },
    /// One file.
    File { url: Url, name: String },
}

impl Source {
    /// Reads a source's text.
    pub(crate) fn parse(text: &str) -> Result<Self, FetchError> {
        let invalid = |problem: &str| FetchError::InvalidSource {
            source_text: without_credentials(text),
            problem: problem.to_owned(),
        };
        if let Some(repository) = text.strip_prefix("hf://") {
            let Some((owner, name)) = repository.split_once('/') else {
                return Err(invalid("it names no repository"));
            };
            if !is_hub_name(owner) || !is_hub_name(name) {
                return Err(invalid("owner and name consist of letters, digits, `-`, `_` and `.`"));
            }
            return Ok(Self::Hub {
                owner: owner.to_owned(),
                name: name.to_owned(),
            });
        }
        if let Some(reference) = text.strip_prefix("oci://") {
            return reference
                .parse()
                .map(Self::Registry)
                .map_err(|problem: &str| invalid(problem));
        }
        if let Some(path) = text.strip_prefix("s3://") {
            return parse_bucket(path).map_err(invalid);
        }
        if !text.starts_with("https://") && !text.starts_with("http://") {
            return Err(invalid("its scheme is not known"));
        }
        let url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        let last = url.path_segments().and_then(|mut segments| segments.next_back());
        let name = percent_decode(last.unwrap_or_default()).ok_or_else(|| invalid("its file name is not UTF-8"))?;
        if let Err(problem) = check_path(&name) {
            return Err(invalid(&format!("its last part is no file name ({problem})")));
        }
        Ok(Self::File { url, name })
    }

    /// How its scheme is written.
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Self::Hub { .. } => "hf://",
            Self::Registry(_) => "oci://",
            Self::Bucket { .. } => "s3://",
            Self::File { .. } => "https://",
        }
    }
}

fn parse_bucket(path: &str) -> Result<Source, &'static str> {
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let is_name = bucket.starts_with(|first: char| first.is_ascii_alphanumeric())
        && (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !bucket.contains("..");
    if !is_name {
        return Err("its bucket has not 3 to 63 letters, digits, `-` and `.`");
    }
    if !prefix.is_empty() && check_path(prefix.trim_end_matches('/')).is_err() {
        return Err("its prefix has an empty part, `.` or `..`");
    }
    Ok(Source::Bucket {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

/// What is left of a text that may hold a password, for a message.
fn without_credentials(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    match text.split_once('@') {
        Some((before, after)) if before.contains("://") => {
            let scheme = before.split("://").next().unwrap_or_default();
            format!("{scheme}://{after}")
        }
        _ => text,
    }
}

fn is_hub_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 96
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%'
            && let [high, low, tail @ ..] = tail
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
        {
            bytes.push(u8::try_from(high * 16 + low).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether a relative path stays in the model's folder and can be written in a manifest.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.len() > MAX_PATH_BYTES {
        return Err("it is longer than 1024 bytes");
    }
    if path.contains('\\') || path.chars().any(char::is_control) {
        return Err("it has a backslash or a control character");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("it is absolute or has an empty part"),
            "." | ".." => return Err("it leaves the model's folder"),
            part if part.len() > 255 => return Err("a part of it is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a glob of the usual files can choose weights of the format, or chooses no weights.
fn is_of_format(glob: &str, format: Option<Format>) -> bool {
    match format {
        None => true,
        Some(Format::Safetensors) => !glob.contains(".gguf"),
        Some(Format::Gguf) => !glob.contains(".safetensors"),
    }
}

/// The globs that choose a model's files; `*` does not cross folders.
/// Without globs it is the usual files, of one format where one is asked for.
pub(crate) fn file_filter(globs: &[String], format: Option<Format>) -> Result<GlobSet, FetchError> {
    let mut builder = GlobSetBuilder::new();
    let defaults = DEFAULT_FILES
        .iter()
        .copied()
        .filter(|glob| globs.is_empty() && is_of_format(glob, format));
    for glob in globs.iter().map(String::as_str).chain(defaults) {
        let compiled = GlobBuilder::new(glob).literal_separator(true).build();
        builder.add(compiled.map_err(|error| FetchError::InvalidSource {
            source_text: glob.to_owned(),
            problem: format!("it is no glob: {}", error.kind()),
        })?);
    }
    builder.build().map_err(|error| FetchError::InvalidSource {
        source_text: globs.join(" "),
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        assert_eq!(
            Source::parse("hf://HuggingFaceTB/SmolLM2-135M-Instruct").unwrap(),
            Source::Hub {
                owner: "HuggingFaceTB".into(),
                name: "SmolLM2-135M-Instruct".into()
            }
        );
        let Source::File { name, .. } = Source::parse("https://host/a/my%20model.gguf?x=1").unwrap() else {
            panic!("not a file")
        };
        assert_eq!(name, "my model.gguf");
        assert!(matches!(
            Source::parse("oci://registry.example.com:5000/team/model:v1").unwrap(),
            Source::Registry(_)
        ));
        for (text, wanted) in [
            ("s3://models", ""),
            ("s3://models/", ""),
            ("s3://models/smollm2/v1/", "smollm2/v1/"),
            ("s3://models/m.gguf", "m.gguf"),
        ] {
            let Source::Bucket { bucket, prefix } = Source::parse(text).unwrap() else {
                panic!("not a bucket")
            };
            assert_eq!((bucket.as_str(), prefix.as_str()), ("models", wanted));
        }
    }

    #[test]
    fn nonsense_is_no_source_and_says_what_would_be() {
        for text in [
            "",
            "model.gguf",
            "hf://",
            "hf://owner",
            "hf://owner/",
            "hf://owner/name/more",
            "hf://owner/..",
            "hf://a b/c",
            "hf://owner/name,https://host/file.gguf",
            "ftp://host/file",
            "https://",
            "https://host/",
            "https://host/..%2fescape",
            "https://host/a%00b",
            "oci://",
            "oci://registry/model",
            "oci://registry/../etc:v1",
            "s3://",
            "s3:///key",
            "s3://Bu cket/x",
            "s3://models/../other/x",
            "s3://models//x",
            "s3://me:secret@models/x",
        ] {
            let error = Source::parse(text).unwrap_err();
            assert_eq!(error.reason(), "InvalidSource", "{text}");
            assert!(error.to_string().contains("hf://owner/name"), "{error}");
        }
    }

    #[test]
    fn password_of_a_refused_source_is_not_repeated() {
        let error = Source::parse("ftp://me:secret@host/file").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "a/.",
            "",
            "a\\b",
            "a\nb",
            &"a/".repeat(600),
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["model.gguf", "a/b c.json", "..hidden", "ünï.gguf"] {
            assert_eq!(check_path(path), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn default_files_are_weights_and_what_belongs_to_them() {
        let filter = file_filter(&[], None).unwrap();
        for name in [
            "m-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "a.gguf",
            "LICENSE.txt",
        ] {
            assert!(filter.is_match(name), "{name}");
        }
        for name in ["pytorch_model.bin", "onnx/model.gguf", "README.md", "code.py"] {
            assert!(!filter.is_match(name), "{name}");
        }
        let gguf = file_filter(&[], Some(Format::Gguf)).unwrap();
        assert!(gguf.is_match("a.gguf") && gguf.is_match("LICENSE") && !gguf.is_match("model.safetensors"));
        let safetensors = file_filter(&[], Some(Format::Safetensors)).unwrap();
        assert!(safetensors.is_match("model.safetensors.index.json") && !safetensors.is_match("a.gguf"));
        let chosen = file_filter(&["*Q4_1*".to_owned(), "sub/*.json".to_owned()], None).unwrap();
        assert!(chosen.is_match("m.Q4_1.gguf") && chosen.is_match("sub/a.json"));
        assert!(!chosen.is_match("m.Q8_0.gguf") && !chosen.is_match("sub/deep/a.json"));
        assert_eq!(
            file_filter(&["[".to_owned()], None).unwrap_err().reason(),
            "InvalidSource"
        );
    }
}
