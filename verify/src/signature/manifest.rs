//! The signed statement: which files a model has, and their hashes.

use super::fields::{Fields, document};
use super::hash::{Algorithm, FileHash, Sum};
use super::paths::{self, Ignored};
use crate::digest::Digest;
use crate::refusal::{Reason, Refusal};
use serde_json::Value;
use sha2::Digest as _;
use std::collections::BTreeMap;

/// The kind of statement that in-toto defines.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The statement about a model's files.
pub(super) const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The statement of before the standard.
const LEGACY_PREDICATE_TYPE: &str = "https://model_signing/Digests/v0.1";
/// More files or parts of files than any model has.
const MAX_RESOURCES: usize = 500_000;
/// The name of the only file, when a model is a single file.
pub(super) const SINGLE_FILE: &str = ".";

/// The files of a model and their hashes, as a statement lists them. By itself it proves nothing: only a verified
/// signature does, which gives a [`SignedManifest`](super::SignedManifest).
#[derive(Debug, Clone)]
pub struct Manifest {
    pub(super) name: String,
    pub(super) root: Digest,
    pub(super) files: BTreeMap<String, FileHash>,
    pub(super) ignored: Ignored,
    pub(super) are_shards: bool,
}

/// How files were hashed.
struct Serialization {
    algorithm: Algorithm,
    /// The length of a part, when files were hashed in parts.
    shard_size: Option<u64>,
    ignored: Ignored,
}

/// One resource: a file, or a part of one.
struct Resource {
    path: String,
    range: Option<(u64, u64)>,
    sum: Sum,
}

impl Manifest {
    /// Reads a statement.
    ///
    /// # Errors
    /// `LegacyBundle`, `PredicateType`, `SubjectCount`, `ManifestSchema`, `ManifestEmpty`, `HashNotAllowed`,
    /// `DigestFormat`, `RootDigest`, `PathInvalid`, `IgnorePathInvalid`, `DuplicateResource`, `DuplicateKey` and
    /// `ShardLayout` as their names say.
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        let value = document(payload, "signed statement", Reason::ManifestSchema)?;
        let statement = Fields::of(&value, "statement", Reason::ManifestSchema)?;
        check_type(statement)?;
        let (name, root) = subject(statement)?;
        let predicate = statement.object("predicate")?;
        let serialization = serialization(predicate.object("serialization")?)?;
        let resources = predicate.list("resources")?;
        if resources.is_empty() {
            return Err(Refusal::new(
                Reason::ManifestEmpty,
                "the signature names no files; sign the model again",
            ));
        }
        if resources.len() > MAX_RESOURCES {
            return Err(Refusal::new(
                Reason::ManifestSchema,
                format!("the signature names more than {MAX_RESOURCES} files or parts of files"),
            ));
        }
        let mut all = sha2::Sha256::new();
        let mut read = Vec::with_capacity(resources.len());
        for value in resources {
            let fields = Fields::of(value, "resources", Reason::ManifestSchema)?;
            let resource = resource(fields, &serialization)?;
            all.update(resource.sum.bytes);
            read.push(resource);
        }
        let computed = Digest::from_bytes(all.finalize().into());
        if computed != root {
            return Err(Refusal::new(
                Reason::RootDigest,
                "the digest over all files is not the one of the files that are named; sign the model again",
            )
            .values(root.short(), computed.short()));
        }
        let files = match serialization.shard_size {
            None => whole_files(read)?,
            Some(size) => join_shards(read, size)?,
        };
        Ok(Self {
            name,
            root,
            files,
            ignored: serialization.ignored,
            are_shards: serialization.shard_size.is_some(),
        })
    }

    /// The paths of the files, sorted, with their hashes. A single file has the path `.`.
    pub fn files(&self) -> impl Iterator<Item = (&str, &FileHash)> {
        self.files.iter().map(|(path, hash)| (path.as_str(), hash))
    }

    /// The digest over the hashes of all files, in the order of the statement. It does not cover their names, so it is
    /// not the model's identity.
    pub fn root_digest(&self) -> Digest {
        self.root
    }
}

/// Whether a payload is a statement of before the standard. It is asked only to say why something is refused.
pub(super) fn is_legacy(payload: &[u8]) -> bool {
    document(payload, "statement", Reason::ManifestSchema)
        .is_ok_and(|value| value.get("predicateType").and_then(Value::as_str) == Some(LEGACY_PREDICATE_TYPE))
}

/// The refusal of a statement of before the standard.
pub(super) fn legacy() -> Refusal {
    Refusal::new(
        Reason::LegacyBundle,
        "the signature has the format of version 0.2 of the signing tool, which did not cover all of its content; \
         sign the model again with version 1.0 or later",
    )
    .values(PREDICATE_TYPE, LEGACY_PREDICATE_TYPE)
}

fn check_type(statement: Fields<'_>) -> Result<(), Refusal> {
    let predicate_type = statement.text("predicateType")?;
    if predicate_type == LEGACY_PREDICATE_TYPE {
        return Err(legacy());
    }
    if predicate_type != PREDICATE_TYPE {
        return Err(Refusal::new(
            Reason::PredicateType,
            "the statement is not about the files of a model; name the signature of the model",
        )
        .values(PREDICATE_TYPE, predicate_type));
    }
    let kind = statement.text("_type")?;
    if kind != STATEMENT_TYPE {
        return Err(statement
            .wrong("_type", "is not the one of a statement")
            .values(STATEMENT_TYPE, kind));
    }
    Ok(())
}

fn subject(statement: Fields<'_>) -> Result<(String, Digest), Refusal> {
    let subjects = statement.list("subject")?;
    let [subject] = subjects else {
        return Err(Refusal::new(
            Reason::SubjectCount,
            "the statement must have exactly one subject; sign the model again",
        )
        .values(1, subjects.len()));
    };
    let subject = Fields::of(subject, "subject", Reason::ManifestSchema)?;
    let name = match subject.get("name") {
        Some(_) => subject.text("name")?.to_owned(),
        None => String::new(),
    };
    let digest = subject.object("digest")?;
    let root = format!("sha256:{}", digest.text("sha256")?);
    let root = root.parse().map_err(|_| digit_fault(&root))?;
    Ok((name, root))
}

fn digit_fault(digest: &str) -> Refusal {
    Refusal::new(
        Reason::DigestFormat,
        "a digest is not 64 lower-case hex digits; sign the model again",
    )
    .values("64 lower-case hex digits", digest.chars().take(80).collect::<String>())
}

fn serialization(fields: Fields<'_>) -> Result<Serialization, Refusal> {
    const KNOWN: [&str; 5] = ["method", "hash_type", "allow_symlinks", "shard_size", "ignore_paths"];
    // How files are hashed must be understood as a whole. Elsewhere unknown fields are ignored, as the standard says.
    if let Some(name) = fields.names().find(|name| !KNOWN.contains(name)) {
        return Err(fields.wrong(name, "is not known to version 1.0 of the standard"));
    }
    let algorithm = algorithm(fields.text("hash_type")?)?;
    // Links are never followed here, so it does not matter what the signer did.
    fields.flag("allow_symlinks")?;
    let shard_size = match (fields.text("method")?, fields.get("shard_size")) {
        ("files", None) => None,
        ("files", Some(_)) => return Err(fields.wrong("shard_size", "has no meaning when whole files are hashed")),
        ("shards", Some(size)) => {
            Some(whole_number(size).ok_or_else(|| fields.wrong("shard_size", "is not a number of bytes"))?)
        }
        ("shards", None) => return Err(fields.wrong("shard_size", "is missing")),
        _ => return Err(fields.wrong("method", "is neither `files` nor `shards`")),
    };
    let mut ignored = Ignored::default();
    if fields.get("ignore_paths").is_some() {
        for path in fields.list("ignore_paths")? {
            let path = path
                .as_str()
                .ok_or_else(|| fields.wrong("ignore_paths", "holds something that is not a text"))?;
            ignored.add(path)?;
        }
    }
    Ok(Serialization {
        algorithm,
        shard_size,
        ignored,
    })
}

/// A number of bytes that is not 0. Protocol buffers know only one kind of number in JSON, so `8` may be written `8.0`.
fn whole_number(value: &Value) -> Option<u64> {
    let number = value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0)?;
        // Beyond this, a float does not name one whole number.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole and in range"
        )]
        (1.0..9_007_199_254_740_992.0).contains(&float).then_some(float as u64)
    });
    number.filter(|number| *number > 0)
}

fn algorithm(name: &str) -> Result<Algorithm, Refusal> {
    match name {
        "sha256" => Ok(Algorithm::Sha256),
        "blake3" => Ok(Algorithm::Blake3),
        _ => {
            let shown: String = name.chars().take(80).collect();
            Err(Refusal::new(
                Reason::HashNotAllowed,
                format!(
                    "files are hashed with {shown:?}, which is not accepted; sign the model again with sha256 or blake3"
                ),
            ))
        }
    }
}

fn resource(fields: Fields<'_>, serialization: &Serialization) -> Result<Resource, Refusal> {
    let name = fields.text("name")?;
    let (path, range) = match serialization.shard_size {
        None => (name, None),
        Some(_) => split_shard(name).map(|(path, start, end)| (path, Some((start, end))))?,
    };
    if path != SINGLE_FILE {
        paths::check(path, Reason::PathInvalid)?;
    }
    // Parts have the name of the algorithm alone, or with the length of a part as the reference tool writes it.
    let written = fields.text("algorithm")?;
    let plain = match (serialization.shard_size, written.split_once("-sharded-")) {
        (Some(size), Some((plain, length))) if length == size.to_string() => plain,
        (Some(_), Some(_)) => return Err(layout("a part is hashed with another length than `shard_size`", name)),
        _ => written,
    };
    let algorithm = algorithm(plain)?;
    if algorithm != serialization.algorithm {
        return Err(Refusal::new(
            Reason::HashNotAllowed,
            "a file is hashed in another way than `hash_type` says; sign the model again",
        )
        .in_file(path)
        .values(serialization.algorithm, algorithm));
    }
    let digest = fields.text("digest")?;
    let sum: Digest = format!("sha256:{digest}")
        .parse()
        .map_err(|_| digit_fault(digest).in_file(path))?;
    Ok(Resource {
        path: path.to_owned(),
        range,
        sum: Sum {
            algorithm,
            bytes: *sum.as_bytes(),
        },
    })
}

/// Splits `path:start:end` at the last two colons. Numbers have one spelling.
fn split_shard(name: &str) -> Result<(&str, u64, u64), Refusal> {
    let number = |text: &str| -> Option<u64> { text.parse().ok().filter(|number: &u64| number.to_string() == text) };
    let parts = name.rsplit_once(':').and_then(|(rest, end)| {
        let (path, start) = rest.rsplit_once(':')?;
        Some((path, number(start)?, number(end)?))
    });
    parts.ok_or_else(|| layout("a part is not named `path:start:end`", name))
}

fn layout(message: &str, name: &str) -> Refusal {
    let shown: String = name.chars().take(200).collect();
    Refusal::new(Reason::ShardLayout, format!("{message}; sign the model again")).in_file(shown)
}

fn duplicate(path: &str) -> Refusal {
    Refusal::new(
        Reason::DuplicateResource,
        "the signature names the file twice; sign the model again",
    )
    .in_file(path)
}

/// `.` is the whole model, so nothing can be beside it.
fn single_is_alone(files: &BTreeMap<String, FileHash>) -> Result<(), Refusal> {
    if files.contains_key(SINGLE_FILE) && files.len() > 1 {
        return Err(Refusal::new(
            Reason::PathInvalid,
            "the signature names a single file and others beside it; sign the model again",
        )
        .in_file(SINGLE_FILE));
    }
    Ok(())
}

fn whole_files(resources: Vec<Resource>) -> Result<BTreeMap<String, FileHash>, Refusal> {
    let mut files = BTreeMap::new();
    for resource in resources {
        if files.contains_key(&resource.path) {
            return Err(duplicate(&resource.path));
        }
        files.insert(resource.path, FileHash::Whole(resource.sum));
    }
    single_is_alone(&files)?;
    Ok(files)
}

/// Puts parts together. Those of a file must begin at 0, follow each other without gap or overlap, and all but the last
/// must have the agreed length.
fn join_shards(mut resources: Vec<Resource>, size: u64) -> Result<BTreeMap<String, FileHash>, Refusal> {
    resources.sort_by(|left, right| (&left.path, left.range).cmp(&(&right.path, right.range)));
    let mut files: BTreeMap<String, FileHash> = BTreeMap::new();
    for resource in resources {
        let Resource { path, range, sum } = resource;
        let (start, end) = range.unwrap_or_default();
        let (bytes, sums) = match files.get_mut(&path) {
            Some(FileHash::Shards { bytes, sums, .. }) => (bytes, sums),
            Some(FileHash::Whole(_)) => return Err(duplicate(&path)),
            None => {
                let empty = FileHash::Shards {
                    size,
                    bytes: 0,
                    sums: Vec::new(),
                };
                let FileHash::Shards { bytes, sums, .. } = files.entry(path.clone()).or_insert(empty) else {
                    return Err(duplicate(&path));
                };
                (bytes, sums)
            }
        };
        if start < *bytes {
            return Err(duplicate(&path));
        }
        let is_after_a_whole_part = bytes.is_multiple_of(size);
        if start != *bytes || !is_after_a_whole_part || end <= start || end - start > size {
            return Err(layout("the parts of the file do not follow each other", &path));
        }
        *bytes = end;
        sums.push(sum);
    }
    single_is_alone(&files)?;
    Ok(files)
}
