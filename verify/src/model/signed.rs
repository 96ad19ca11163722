//! Opening a model with a signature.

#[cfg(test)]
mod tests;

use super::{Entry, Progress, VerifiedModel, changed, hash, mismatch};
use crate::digest::model_digest;
use crate::refusal::{Reason, Refusal};
use crate::root::Root;
use crate::signature::{Comparison, FileHash, SignedManifest, weights_not_signed};
use std::collections::BTreeMap;
use std::path::Path;

/// How closely the files on disk must be those that were signed. Whatever is chosen, a file that was not signed cannot be
/// read, and one whose bytes are not those that were signed is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// All files that were signed, and no others.
    #[default]
    Exact,
    /// Some of the files that were signed, and no others.
    Subset,
    /// All files that were signed; others beside them are not looked at.
    IgnoreUnsigned,
}

/// What a file on disk is to a signature.
enum Standing<'a> {
    Signed(&'a FileHash),
    LeftOut,
}

impl VerifiedModel {
    /// Opens the model in `path`, a file or a folder, whose files must be those that were signed.
    ///
    /// Only files that were signed can be read. The [`digest`](Self::digest) is that of all files that are there, as
    /// [`open`](Self::open) computes it. `progress` receives the bytes that were hashed so far and in all.
    ///
    /// # Errors
    /// `UnsignedFile`, `FileMissing`, `DigestMismatch`, `SizeMismatch`, `WeightsNotSigned` (weights are there that the
    /// signature leaves out), `FileNotInManifest` (a single file was signed, and several are there); otherwise as `open`.
    ///
    /// # Caveats
    /// A single file is hashed when it is read and not before, as with `open`: see [`check`](Self::check).
    pub fn open_signed(
        path: &Path,
        manifest: &SignedManifest,
        strictness: Strictness,
        progress: Progress<'_>,
    ) -> Result<Self, Refusal> {
        let (root, names) = Root::open(path)?;
        let standings = judge(&names, manifest, strictness)?;
        if let ([(name, bytes)], [Standing::Signed(signed)]) = (names.as_slice(), standings.as_slice())
            && let Some(digest) = signed.sha256()
        {
            let entry = Entry {
                bytes: *bytes,
                digest,
                is_hashed: false,
            };
            return Ok(Self {
                root,
                files: BTreeMap::from([(name.clone(), entry)]),
                digest,
                pinned: false,
                signer: Some(manifest.signer().clone()),
                overlay: BTreeMap::new(),
            });
        }
        let total = names.iter().map(|(_, bytes)| bytes).sum();
        let mut done = 0;
        let (mut digests, mut files) = (BTreeMap::new(), BTreeMap::new());
        for ((name, bytes), standing) in names.into_iter().zip(standings) {
            let open = root.open_file(&name)?;
            let mut told = |read| progress(done + read, total);
            let digest = match standing {
                Standing::LeftOut => hash(&name, open, &mut |_| (), &mut told)?,
                Standing::Signed(signed) => {
                    if let Some(expected) = signed.bytes().filter(|expected| *expected != bytes) {
                        return Err(wrong_size(&name, expected, bytes));
                    }
                    if open.bytes != bytes {
                        return Err(changed(&name).values(format!("{bytes} bytes"), format!("{} bytes", open.bytes)));
                    }
                    let mut comparison = Comparison::new(signed);
                    let digest = hash(&name, open, &mut |piece| comparison.update(piece), &mut told)?;
                    compare(&name, signed, comparison, &digest)?;
                    let entry = Entry {
                        bytes,
                        digest,
                        is_hashed: true,
                    };
                    files.insert(name.clone(), entry);
                    digest
                }
            };
            done += bytes;
            digests.insert(name, digest);
        }
        Ok(Self {
            root,
            files,
            digest: model_digest(&digests)?,
            pinned: false,
            signer: Some(manifest.signer().clone()),
            overlay: BTreeMap::new(),
        })
    }
}

impl VerifiedModel {
    /// Refuses a model that is open already unless every file of it was signed as it is. Files that the signature leaves
    /// out cannot be read from now on.
    ///
    /// # Errors
    /// As [`open_signed`](Self::open_signed) with [`Strictness::Subset`].
    pub fn require_signed(&mut self, manifest: &SignedManifest) -> Result<(), Refusal> {
        let names: Vec<_> = self
            .files
            .iter()
            .map(|(name, entry)| (name.clone(), entry.bytes))
            .collect();
        let standings = judge(&names, manifest, Strictness::Subset)?;
        for ((name, bytes), standing) in names.iter().zip(standings) {
            let signed = match standing {
                Standing::Signed(signed) => signed,
                Standing::LeftOut => {
                    self.files.remove(name);
                    continue;
                }
            };
            let (entry, open) = self.open_file(name)?;
            if let Some(expected) = signed.sha256() {
                if expected != entry.digest {
                    return Err(mismatch(&expected, &entry.digest).in_file(name));
                }
                continue;
            }
            if let Some(expected) = signed.bytes().filter(|expected| expected != bytes) {
                return Err(wrong_size(name, expected, *bytes));
            }
            let mut comparison = Comparison::new(signed);
            let digest = hash(name, open, &mut |piece| comparison.update(piece), &mut |_| ())?;
            if digest != entry.digest {
                return Err(changed(name).values(entry.digest.short(), digest.short()));
            }
            compare(name, signed, comparison, &digest)?;
        }
        self.signer = Some(manifest.signer().clone());
        Ok(())
    }
}

fn compare(
    name: &str,
    signed: &FileHash,
    comparison: Comparison<'_>,
    digest: &crate::digest::Digest,
) -> Result<(), Refusal> {
    if let Some(expected) = signed.sha256().filter(|expected| expected != digest) {
        return Err(mismatch(&expected, digest).in_file(name));
    }
    match comparison.finish() {
        Some((expected, got)) => Err(Refusal::new(
            Reason::DigestMismatch,
            "the bytes are not those that were signed; fetch the model again, or sign it again if the change is wanted",
        )
        .in_file(name)
        .values(expected.short(), got.short())),
        None => Ok(()),
    }
}

fn wrong_size(name: &str, expected: u64, got: u64) -> Refusal {
    Refusal::new(
        Reason::SizeMismatch,
        "the file does not have the length that was signed; fetch the model again",
    )
    .in_file(name)
    .values(format!("{expected} bytes"), format!("{got} bytes"))
}

/// What each file on disk is to the signature, or why the model is refused as a whole. Nothing is read.
fn judge<'a>(
    names: &[(String, u64)],
    manifest: &'a SignedManifest,
    strictness: Strictness,
) -> Result<Vec<Standing<'a>>, Refusal> {
    let mut standings = Vec::with_capacity(names.len());
    let mut found = 0_usize;
    for (name, bytes) in names {
        let single = manifest
            .single_file()
            .filter(|_| names.len() == 1 || !manifest.is_left_out(name));
        if let Some(hash) = manifest.hash(name).or(single) {
            found += 1;
            standings.push(Standing::Signed(hash));
            continue;
        }
        if manifest.leaves_out_weights(name) {
            return Err(weights_not_signed(name));
        }
        // An empty file has no parts, so a signature over parts cannot name it.
        let is_nothing = manifest.is_in_shards() && *bytes == 0;
        if !manifest.is_left_out(name) && !is_nothing && strictness != Strictness::IgnoreUnsigned {
            return Err(Refusal::new(
                Reason::UnsignedFile,
                "the file was not signed; remove it, or sign the model again with it",
            )
            .in_file(name));
        }
        standings.push(Standing::LeftOut);
    }
    if manifest.single_file().is_some() && found > 1 {
        return Err(Refusal::new(
            Reason::FileNotInManifest,
            "a single file was signed, and the folder has several; name the file",
        ));
    }
    let is_there = |file: &str| {
        manifest.single_file().is_some() || names.binary_search_by(|(name, _)| name.as_str().cmp(file)).is_ok()
    };
    let missing = manifest.files().map(|(file, _)| file).find(|file| !is_there(file));
    if found == 0 {
        return Err(Refusal::new(
            Reason::FileMissing,
            "none of the files that were signed is there; name the folder or file that the signature is for",
        )
        .in_file(missing.unwrap_or(".")));
    }
    match missing.filter(|_| strictness != Strictness::Subset) {
        Some(file) => Err(Refusal::new(
            Reason::FileMissing,
            "the file was signed and is not there; fetch the model again",
        )
        .in_file(file)),
        None => Ok(standings),
    }
}
