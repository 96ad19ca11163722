//! Beside the reference tool: each accepts what the other signed, and 300 changes to a signed model get the same verdict from
//! both, but for the differences of a table.

#![expect(clippy::unwrap_used, reason = "tests")]

mod tool;
mod vectors;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use escadre_verify::signature::{SigningKey, sign};
use escadre_verify::{Strictness, Trust};
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tool::{Curve, Reference, private_key, verify_request, write, write_model};
use vectors::{copy, verify};

#[test]
fn each_tool_accepts_what_the_other_signed() {
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model");
    write_model(&model);
    let mut reference = Reference::start();
    for curve in [Curve::P256, Curve::P384, Curve::P521] {
        let pem = private_key(curve);
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let trust = Trust::keys(key.public_pem().as_bytes()).unwrap();
        let private = write(scratch.path(), "private.pem", &pem);
        let public = write(scratch.path(), "public.pem", key.public_pem());
        for what in [model.clone(), model.join("model.safetensors")] {
            let ours = sign(&what, &key, &["logs".to_owned()], &mut |_, _| ()).unwrap();
            let ours = write(scratch.path(), "ours.sig", ours);
            assert_eq!(
                reference.ask(&verify_request(&what, &public, &ours)),
                Ok(()),
                "{curve:?} {what:?}"
            );
            let theirs = scratch.path().join("theirs.sig");
            for hash in ["sha256", "blake3"] {
                let request =
                    json!({"action": "sign", "model": what, "key": private, "signature": theirs, "hash": hash});
                reference.ask(&request).unwrap();
                let opened = verify(&what, &theirs, &trust, &[], Strictness::Exact);
                assert!(opened.is_ok(), "{curve:?} {hash}");
            }
        }
    }
}

/// Where the verdicts differ: the change, whether this project accepts it, and why.
const DIFFERENCES: [(&str, bool, &str); 17] = [
    (
        "another hint",
        true,
        "a hint helps to find a key and proves nothing; the reference compares it",
    ),
    (
        "two signatures",
        false,
        "the reference looks at the first and ignores the others",
    ),
    (
        "key of the bundle twice",
        false,
        "readers of JSON do not agree which of the two counts",
    ),
    (
        "key of the statement twice",
        false,
        "readers of JSON do not agree which of the two counts",
    ),
    ("digest in capitals", false, "a digest has one spelling"),
    ("path with a dot", false, "a path has one spelling"),
    ("path with two slashes", false, "a path has one spelling"),
    ("path that ends in a slash", false, "a path has one spelling"),
    (
        "unknown way of hashing",
        false,
        "what is not understood about hashing is not skipped",
    ),
    (
        "absolute ignored path",
        false,
        "only what is below the folder can be left out",
    ),
    (
        "ignored path that leaves the folder",
        false,
        "only what is below the folder can be left out",
    ),
    ("weights in an ignored folder", false, "weights must be signed"),
    ("ignored weights", false, "weights must be signed"),
    (
        "signed file is ignored",
        true,
        "what was signed is verified; the reference leaves it out and then misses it",
    ),
    ("resource named twice", false, "the reference keeps the last of the two"),
    ("links are allowed, as a text", false, "a flag is true or false"),
    ("deep statement", false, "JSON is nested at most 64 deep"),
];

/// Small numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

/// A model and its signature, which a change is made to.
struct Case<'a> {
    model: &'a Path,
    bundle: String,
    dice: &'a mut Dice,
}

impl Case<'_> {
    fn change_bundle(&mut self, change: impl FnOnce(&mut Value)) {
        let mut bundle: Value = serde_json::from_str(&self.bundle).unwrap();
        change(&mut bundle);
        self.bundle = bundle.to_string();
    }

    /// Signs a payload anew.
    fn sign(&mut self, payload: &[u8]) {
        let kind = "application/vnd.in-toto+json";
        let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
        let key = p256::ecdsa::SigningKey::from_pkcs8_pem(&private_key(Curve::P256)).unwrap();
        let signature: p256::ecdsa::DerSignature = key.sign(&[head.as_bytes(), payload].concat());
        self.change_bundle(|bundle| {
            bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload));
            bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(STANDARD.encode(signature.as_bytes()));
        });
    }

    fn payload(&self) -> Value {
        let bundle: Value = serde_json::from_str(&self.bundle).unwrap();
        let payload = STANDARD
            .decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap())
            .unwrap();
        serde_json::from_slice(&payload).unwrap()
    }

    /// Changes the statement and signs it anew.
    fn change_statement(&mut self, change: impl FnOnce(&mut Value)) {
        let mut statement = self.payload();
        change(&mut statement);
        self.sign(statement.to_string().as_bytes());
    }

    /// Changes the list of files, with a new digest over all, and signs it anew.
    fn change_resources(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        self.change_statement(|statement| {
            let resources = statement["predicate"]["resources"].as_array_mut().unwrap();
            change(resources);
            let digest = |resource: &Value| -> Vec<u8> {
                let hex = resource["digest"].as_str().unwrap_or_default().to_lowercase();
                let digest: Result<escadre_verify::Digest, _> = format!("sha256:{hex}").parse();
                digest.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default()
            };
            let all: Vec<u8> = resources.iter().flat_map(digest).collect();
            statement["subject"][0]["digest"]["sha256"] = json!(escadre_verify::Digest::of(&all).hex());
        });
    }

    fn serialization(&mut self, field: &'static str, value: Value) {
        self.change_statement(|statement| statement["predicate"]["serialization"][field] = value);
    }

    fn ignore(&mut self, path: &str) {
        self.change_statement(|statement| {
            let paths = &mut statement["predicate"]["serialization"]["ignore_paths"];
            paths.as_array_mut().unwrap().push(json!(path));
        });
    }

    fn file(&mut self) -> PathBuf {
        self.model.join(self.dice.pick(&[
            "config.json",
            "model.safetensors",
            "tokenizer/merges.txt",
            "notes/read me.txt",
        ]))
    }

    fn add(&self, name: &str, content: &[u8]) {
        let path = self.model.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

type Change = (&'static str, fn(&mut Case<'_>));

/// Changes to the text of the bundle.
const TEXT: [Change; 7] = [
    ("byte of the bundle", |case| {
        let at = case.dice.roll(case.bundle.len());
        let byte = *case.dice.pick(b"abcXYZ019+/={}[]\",: ");
        let mut bytes = case.bundle.clone().into_bytes();
        bytes[at] = byte;
        case.bundle = String::from_utf8(bytes).unwrap();
    }),
    ("byte less", |case| {
        let at = case.dice.roll(case.bundle.len());
        case.bundle.remove(at);
    }),
    ("byte twice", |case| {
        let at = case.dice.roll(case.bundle.len());
        let byte = char::from(case.bundle.as_bytes()[at]);
        case.bundle.insert(at, byte);
    }),
    ("cut off", |case| {
        case.bundle.truncate(case.dice.roll(case.bundle.len() - 1));
    }),
    ("text behind the bundle", |case| case.bundle.push_str("{}")),
    ("byte order mark", |case| case.bundle.insert(0, '\u{feff}')),
    ("key of the bundle twice", |case| {
        case.bundle = case.bundle.replacen('{', "{\"mediaType\":\"x\",", 1);
    }),
];

/// Changes to what the bundle says.
const BUNDLE: [Change; 15] = [
    ("nothing", |_| ()),
    ("another hint", |case| {
        case.change_bundle(|bundle| bundle["verificationMaterial"]["publicKey"]["hint"] = json!("x"));
    }),
    ("no hint", |case| {
        case.change_bundle(|bundle| bundle["verificationMaterial"]["publicKey"] = json!({}));
    }),
    ("key identifier", |case| {
        case.change_bundle(|bundle| bundle["dsseEnvelope"]["signatures"][0]["keyid"] = json!("x"));
    }),
    ("another version", |case| {
        case.change_bundle(|bundle| {
            bundle["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.1");
        });
    }),
    ("another type of payload", |case| {
        case.change_bundle(|bundle| bundle["dsseEnvelope"]["payloadType"] = json!("text/plain"));
    }),
    ("two signatures", |case| {
        case.change_bundle(|bundle| {
            let first = bundle["dsseEnvelope"]["signatures"][0].clone();
            bundle["dsseEnvelope"]["signatures"] = json!([first, {"sig": "AAAA", "keyid": ""}]);
        });
    }),
    ("no signature", |case| {
        case.change_bundle(|bundle| bundle["dsseEnvelope"]["signatures"] = json!([]));
    }),
    ("no envelope", |case| {
        case.change_bundle(|bundle| bundle["dsseEnvelope"] = Value::Null);
    }),
    ("no key", |case| {
        case.change_bundle(|bundle| bundle["verificationMaterial"] = json!({"tlogEntries": []}));
    }),
    ("message beside the envelope", |case| {
        case.change_bundle(|bundle| bundle["messageSignature"] = json!({"signature": "AAAA"}));
    }),
    ("certificate beside the key", |case| {
        case.change_bundle(|bundle| bundle["verificationMaterial"]["certificate"] = json!({"rawBytes": "AAAA"}));
    }),
    ("no log entries", |case| {
        case.change_bundle(|bundle| {
            bundle["verificationMaterial"]
                .as_object_mut()
                .unwrap()
                .remove("tlogEntries");
        });
    }),
    ("signature of something else", |case| {
        let payload = case.payload();
        case.sign(b"{}");
        case.change_bundle(|bundle| bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload.to_string())));
    }),
    ("payload without its end", |case| {
        case.change_bundle(|bundle| {
            let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
            bundle["dsseEnvelope"]["payload"] = json!(payload[..payload.len() - 4]);
        });
    }),
];

/// Changes to the statement, which is signed anew.
const STATEMENT: [Change; 28] = [
    ("another statement", |case| {
        case.change_statement(|statement| statement["_type"] = json!("x"));
    }),
    ("another predicate", |case| {
        case.change_statement(|statement| statement["predicateType"] = json!("x"));
    }),
    ("no predicate", |case| {
        case.change_statement(|statement| statement["predicate"] = Value::Null);
    }),
    ("two subjects", |case| {
        case.change_statement(|statement| {
            let subject = statement["subject"][0].clone();
            statement["subject"] = json!([subject, subject]);
        });
    }),
    ("digest over other files", |case| {
        case.change_statement(|statement| statement["subject"][0]["digest"]["sha256"] = json!("00".repeat(32)));
    }),
    ("another name", |case| {
        case.change_statement(|statement| statement["subject"][0]["name"] = json!("x"));
    }),
    ("other order", |case| {
        case.change_resources(|resources| resources.reverse());
    }),
    ("resource named twice", |case| {
        case.change_resources(|resources| {
            let first = resources[0].clone();
            resources.push(first);
        });
    }),
    ("resource less", |case| {
        let at = case.dice.roll(4);
        case.change_resources(|resources| drop(resources.remove(at)));
    }),
    ("resource more", |case| {
        case.change_resources(|resources| {
            let mut more = resources[0].clone();
            more["name"] = json!("more");
            resources.push(more);
        });
    }),
    ("no resources", |case| case.change_resources(Vec::clear)),
    ("digests exchanged", |case| {
        case.change_resources(|resources| {
            let first = resources[0]["digest"].clone();
            resources[0]["digest"] = resources[1]["digest"].clone();
            resources[1]["digest"] = first;
        });
    }),
    ("digest in capitals", |case| {
        case.change_resources(|resources| {
            let digest = resources[0]["digest"].as_str().unwrap().to_uppercase();
            resources[0]["digest"] = json!(digest);
        });
    }),
    ("short digest", |case| {
        case.change_resources(|resources| resources[0]["digest"] = json!("00"));
    }),
    ("path with a dot", |case| {
        case.change_resources(|resources| rename(resources, |name| format!("./{name}")));
    }),
    ("path with two slashes", |case| {
        case.change_resources(|resources| rename(resources, |name| name.replace('/', "//")));
    }),
    ("path that ends in a slash", |case| {
        case.change_resources(|resources| rename(resources, |name| format!("{name}/")));
    }),
    ("path that leaves the folder", |case| {
        case.change_resources(|resources| rename(resources, |name| format!("../model/{name}")));
    }),
    ("unknown fact", |case| {
        case.change_statement(|statement| statement["predicate"]["author"] = json!("somebody"));
    }),
    ("unknown way of hashing", |case| {
        case.serialization("order", json!("by size"));
    }),
    ("unknown hash", |case| case.serialization("hash_type", json!("md5"))),
    ("unknown method", |case| case.serialization("method", json!("tensors"))),
    ("links are allowed, as a text", |case| {
        case.serialization("allow_symlinks", json!("yes"));
    }),
    ("key of the statement twice", |case| {
        let text = case.payload().to_string().replacen('{', "{\"_type\":\"x\",", 1);
        case.sign(text.as_bytes());
    }),
    ("deep statement", |case| {
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        let text = case.payload().to_string().replacen('{', &format!("{{\"x\":{deep},"), 1);
        case.sign(text.as_bytes());
    }),
    ("absolute ignored path", |case| case.ignore("/tmp")),
    ("ignored path that leaves the folder", |case| case.ignore("../other")),
    ("signed file is ignored", |case| case.ignore("config.json")),
];

/// Gives every resource with a slash in its name another name, or the first one.
fn rename(resources: &mut [Value], name: impl Fn(&str) -> String) {
    for resource in resources {
        let new = name(resource["name"].as_str().unwrap());
        resource["name"] = json!(new);
    }
}

/// Changes to the files of the model.
const FILES: [Change; 15] = [
    ("byte of a file", |case| {
        let path = case.file();
        let mut content = fs::read(&path).unwrap();
        let at = case.dice.roll(content.len());
        content[at] ^= 1 << case.dice.roll(8);
        fs::write(path, content).unwrap();
    }),
    ("longer file", |case| {
        let path = case.file();
        let content = fs::read(&path).unwrap();
        fs::write(path, [content.as_slice(), b"x"].concat()).unwrap();
    }),
    ("empty file", |case| fs::write(case.file(), b"").unwrap()),
    ("file less", |case| fs::remove_file(case.file()).unwrap()),
    ("file more", |case| case.add("more.txt", b"x")),
    ("empty file more", |case| case.add("more.txt", b"")),
    ("file more in a folder", |case| case.add("a/b/more.txt", b"x")),
    ("empty folder more", |case| {
        fs::create_dir(case.model.join("more")).unwrap();
    }),
    ("file of git", |case| case.add(".git/config", b"x")),
    ("file of git further down", |case| case.add("notes/.git/config", b"x")),
    ("file in an ignored folder", |case| case.add("logs/x.txt", b"x")),
    ("file beside an ignored folder", |case| case.add("logs2/x.txt", b"x")),
    ("weights in an ignored folder", |case| {
        case.add("logs/x.safetensors", b"x");
    }),
    ("ignored weights", |case| {
        case.add("adapter.gguf", b"x");
        case.ignore("adapter.gguf");
    }),
    ("link", |case| {
        let path = case.file();
        let target = case.model.with_file_name("target");
        fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }),
];

/// A change of single bytes that comes down to one that has a name, because the bundle still says the rest.
fn name_of(name: &'static str, before: &str, after: &str) -> &'static str {
    let rest = |text: &str| -> Option<(Value, Value)> {
        let mut bundle: Map<String, Value> = serde_json::from_str(text).ok()?;
        let key = bundle
            .get_mut("verificationMaterial")?
            .get_mut("publicKey")?
            .as_object_mut()?;
        Some((key.remove("hint")?, Value::Object(bundle)))
    };
    match (rest(before), rest(after)) {
        (Some((old, before)), Some((new, after))) if before == after && old != new => "another hint",
        _ => name,
    }
}

#[test]
fn changes_get_the_verdict_of_the_reference_tool_but_for_known_differences() {
    let scratch = tempfile::tempdir().unwrap();
    let original = scratch.path().join("original");
    write_model(&original);
    let key = SigningKey::from_pem(private_key(Curve::P256).as_bytes()).unwrap();
    let trust = Trust::keys(key.public_pem().as_bytes()).unwrap();
    let public = write(scratch.path(), "public.pem", key.public_pem());
    let bundle = String::from_utf8(sign(&original, &key, &["logs".to_owned()], &mut |_, _| ()).unwrap()).unwrap();
    let changes: Vec<Change> = [TEXT.as_slice(), &BUNDLE, &STATEMENT, &FILES].concat();
    let mut reference = Reference::start();
    let mut dice = Dice(20_261_129);
    let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut unexplained = Vec::new();
    let mut accepted = 0;
    for number in 0..300 {
        let folder = scratch.path().join(number.to_string());
        let model = folder.join("model");
        copy(&original, &model);
        // Every change at least once, and then as the dice fall.
        let (name, change) = changes.get(number).copied().unwrap_or_else(|| *dice.pick(&changes));
        let mut case = Case {
            model: &model,
            bundle: bundle.trim_end().to_owned(),
            dice: &mut dice,
        };
        change(&mut case);
        let name = name_of(name, &bundle, &case.bundle);
        let signature = write(&folder, "model.sig", &case.bundle);
        let ours = verify(&model, &signature, &trust, &[], Strictness::Exact).map(|_| ());
        let theirs = reference.ask(&verify_request(&model, &public, &signature));
        let count = seen.entry(name).or_default();
        if ours.is_ok() == theirs.is_ok() {
            count.0 += 1;
            accepted += usize::from(ours.is_ok());
            continue;
        }
        count.1 += 1;
        let is_known = DIFFERENCES
            .iter()
            .any(|(known, accepts, _)| *known == name && *accepts == ours.is_ok());
        if !is_known {
            unexplained.push(format!("{name}: ours {ours:?}, theirs {theirs:?}\n{}", case.bundle));
        }
        fs::remove_dir_all(folder).unwrap();
    }
    println!("\n| Change | Same verdict | Other verdict | Why |\n|---|---|---|---|");
    for (name, (same, other)) in &seen {
        let why = DIFFERENCES
            .iter()
            .find(|(known, ..)| known == name)
            .map_or("", |(.., why)| why);
        println!("| {name} | {same} | {other} | {why} |");
    }
    println!("\nboth accept {accepted} of 300");
    assert!(accepted >= 40, "{accepted}");
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n\n"));
    for (name, ..) in DIFFERENCES {
        assert!(
            seen.get(name).is_some_and(|(_, other)| *other > 0),
            "{name} is no difference"
        );
    }
}
