//! What a source has, and which of it belongs to the model. Pure.

use super::error::FetchError;
use super::source::check_path;
use escadre_verify::Digest;
use globset::GlobSet;
use url::Url;

/// More files than any model has.
pub(crate) const MAX_FILES: usize = 10_000;
/// How many names an error shows.
const SHOWN_NAMES: usize = 8;

/// What comes at a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// One file of the model.
    File,
    /// A tar archive with files of the model.
    Archive(Compression),
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
}

/// One file of a source.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// The file's path in the model; of an archive the hex digits of its digest.
    pub(crate) name: String,
    pub(crate) url: Url,
    /// The length, when the source says so.
    pub(crate) bytes: Option<u64>,
    /// The digest that the file must have, when that is known before.
    pub(crate) sha256: Option<Digest>,
    pub(crate) content: Content,
    /// Whether the URL can never bring other bytes, so that a part of them needs no validator to be continued.
    pub(crate) is_immutable: bool,
}

/// The files of a source.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
    pub(crate) resolved_revision: Option<String>,
}

/// What was seen of a source's names and was not chosen, for the error when nothing was.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    names: Vec<String>,
    count: usize,
}

impl Seen {
    /// Takes note of a name.
    pub(crate) fn note(&mut self, name: &str) {
        self.count += 1;
        if self.names.len() < SHOWN_NAMES {
            self.names.push(name.chars().take(200).collect());
        }
    }

    /// Adds what was seen elsewhere.
    pub(crate) fn extend(&mut self, other: Self) {
        self.count += other.count;
        let room = SHOWN_NAMES - self.names.len();
        self.names.extend(other.names.into_iter().take(room));
    }

    /// The error of a source without a single file of the model.
    pub(crate) fn nothing_chosen(&self, url: &Url, what: &str) -> FetchError {
        let Self { names, count } = self;
        let more = count - names.len();
        FetchError::unavailable(
            url,
            format!("no file of the {what} matches model.files; it has {names:?} and {more} more: correct the globs"),
        )
    }
}

/// The files of the model among those of a source, in the order of their names. `seen` is what cannot be chosen.
///
/// # Errors
/// A name that leaves the model's folder, more files than any model has, or none.
pub(crate) fn choose(
    url: &Url,
    what: &str,
    mut seen: Seen,
    found: impl IntoIterator<Item = RemoteFile>,
    filter: &GlobSet,
) -> Result<Vec<RemoteFile>, FetchError> {
    let mut files = Vec::new();
    for file in found {
        seen.note(&file.name);
        if file.content != Content::File {
            files.push(file);
        } else if filter.is_match(&file.name) {
            safe_path(&file.name)?;
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(seen.nothing_chosen(url, what));
    }
    check_count(url, what, files.len())?;
    files.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    files.dedup_by(|one, other| one.name == other.name && one.url == other.url && one.sha256 == other.sha256);
    if let Some([twice, _]) = files.array_windows().find(|[one, other]| one.name == other.name) {
        return Err(named_twice(&twice.name));
    }
    Ok(files)
}

/// Refuses a source with more files than any model has.
pub(crate) fn check_count(url: &Url, what: &str, count: usize) -> Result<(), FetchError> {
    if count <= MAX_FILES {
        return Ok(());
    }
    Err(FetchError::unavailable(
        url,
        format!("the {what} has more than {MAX_FILES} files; name the folder or repository of one model"),
    ))
}

/// Refuses a path that leaves the model's folder.
pub(crate) fn safe_path(path: &str) -> Result<(), FetchError> {
    check_path(path).map_err(|problem| FetchError::PathInvalid {
        path: path.to_owned(),
        problem,
    })
}

/// The error of a source that has two files of one name.
pub(crate) fn named_twice(path: &str) -> FetchError {
    FetchError::PathInvalid {
        path: path.to_owned(),
        problem: "it is there twice, with different bytes",
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::file_filter;
    use super::*;

    fn file(name: &str, url: &str) -> RemoteFile {
        RemoteFile {
            name: name.to_owned(),
            url: Url::parse(url).unwrap(),
            bytes: None,
            sha256: None,
            content: Content::File,
            is_immutable: false,
        }
    }

    fn chosen(files: Vec<RemoteFile>) -> Result<Vec<String>, FetchError> {
        let url = Url::parse("http://h/").unwrap();
        let chosen = choose(
            &url,
            "repository",
            Seen::default(),
            files,
            &file_filter(&[], None).unwrap(),
        )?;
        Ok(chosen.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn files_of_the_model_are_chosen_in_order_and_once() {
        let files = vec![
            file("m.gguf", "http://h/m"),
            file("README.md", "http://h/r"),
            file("config.json", "http://h/c"),
            file("m.gguf", "http://h/m"),
        ];
        assert_eq!(chosen(files).unwrap(), ["config.json", "m.gguf"]);
    }

    #[test]
    fn two_files_of_one_name_are_refused() {
        let error = chosen(vec![file("m.gguf", "http://h/1"), file("m.gguf", "http://h/2")]).unwrap_err();
        assert_eq!(error.reason(), "PathInvalid");
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn source_without_a_chosen_file_shows_what_there_is() {
        let files = (0..20).map(|n| file(&format!("{n}.bin"), "http://h/x")).collect();
        let error = chosen(files).unwrap_err();
        assert_eq!(error.reason(), "SourceUnavailable");
        let text = error.to_string();
        assert!(text.contains("0.bin") && text.contains("12 more"), "{text}");
    }
}
