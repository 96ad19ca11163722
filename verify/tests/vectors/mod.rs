//! The public test vectors of the standard, which are read where they lie and are no part of the project:
//! `ESCADRE_TESTDATA`, or `../shared/testdata` beside the workspace.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]
#![expect(clippy::print_stdout, reason = "tests tell what they skip")]

use escadre_verify::signature::Identity;
use escadre_verify::{Refusal, Signature, SignedManifest, Strictness, Trust, VerifiedModel};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Set in the process that a test starts again without a network.
const OFFLINE: &str = "ESCADRE_TEST_OFFLINE";

/// The folder of the vectors, or nothing and a message when there is none.
pub(crate) fn folder() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata");
    let root = std::env::var_os("ESCADRE_TESTDATA").map_or_else(beside, PathBuf::from);
    let folder = root.join("model-signing");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: there are no public test vectors in {}", folder.display());
    None
}

/// Runs `body` where there is no network but a loopback: the test of this name is started again in a network namespace of
/// its own.
pub(crate) fn offline(test: &str, body: impl FnOnce(&Path)) {
    let Some(folder) = folder() else { return };
    if std::env::var_os(OFFLINE).is_some() {
        let devices = fs::read_to_string("/proc/net/dev").unwrap();
        let devices: Vec<_> = devices
            .lines()
            .skip(2)
            .filter_map(|line| line.split(':').next())
            .map(str::trim)
            .collect();
        assert_eq!(devices, ["lo"], "the network namespace has more than a loopback");
        return body(&folder);
    }
    let program = std::env::current_exe().unwrap();
    let again = |options: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(options).arg("--").arg(&program);
        command
            .args(["--exact", test, "--nocapture"])
            .env(OFFLINE, "1")
            .output()
            .unwrap()
    };
    let mut output = again(&["--net"]);
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).starts_with("unshare:") {
        output = again(&["--map-root-user", "--net"]);
    }
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The identity that signed the public keyless vectors.
pub(crate) fn identity() -> Identity {
    Identity {
        identity: "stefanb@us.ibm.com".to_owned(),
        issuer: "https://sigstore.verify.ibm.com/oauth2".to_owned(),
    }
}

/// Trust in `wanted` by the pinned root of the public Sigstore.
pub(crate) fn keyless(folder: &Path, wanted: Identity) -> Trust {
    let root = fs::read(folder.join("trust/sigstore-production-trusted_root.json")).unwrap();
    Trust::keyless(&root, wanted).unwrap()
}

/// A public key or certificate of the vectors.
pub(crate) fn key(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join("keys").join(name)).unwrap()
}

/// What `escadre-runtime verify` does: verifies a signature, opens the model, reads all of it.
pub(crate) fn verify(
    model: &Path,
    signature: &Path,
    trust: &Trust,
    ignored: &[&str],
    strictness: Strictness,
) -> Result<(SignedManifest, VerifiedModel), Refusal> {
    let mut manifest = Signature::verify(&fs::read(signature).unwrap(), trust, SystemTime::now())?;
    for path in ignored {
        manifest.ignore(path)?;
    }
    let opened = VerifiedModel::open_signed(model, &manifest, strictness, &mut |_, _| ())?;
    opened.check(&mut |_, _| ())?;
    Ok((manifest, opened))
}

/// Copies a folder, so that a test may change it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
