//! Manifests of registries and the files that they name. Pure.
//!
//! Three ways of naming files are known: the ModelPack specification (`application/vnd.cncf.model.*` layers with
//! `org.cncf.model.filepath`), ORAS (`org.opencontainers.image.title`), and archives whose entries are the names.

use super::super::error::{FetchError, printable};
use super::super::listing::{Compression, Content, Seen};
use escadre_verify::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use url::Url;

/// What is asked for: one artifact, or an index that may lead to one.
pub(crate) const ACCEPT: &str = concat!(
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, ",
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
);

/// Where a layer's path in the model is, first ModelPack's way, then that of ORAS.
const NAMES: [&str; 2] = ["org.cncf.model.filepath", "org.opencontainers.image.title"];
/// How ORAS marks a folder that it has packed.
const ORAS_UNPACK: &str = "io.deis.oras.content.unpack";
/// How the types of ModelPack's layers start.
const MODEL_PACK: &str = "application/vnd.cncf.model.";
/// ModelPack's layers that are never part of what is served.
const OTHER_LAYERS: [&str; 2] = [
    "application/vnd.cncf.model.dataset.",
    "application/vnd.cncf.model.code.",
];

/// A manifest or an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// What a manifest says of a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// What a manifest leads to.
#[derive(Debug)]
pub(crate) enum Found {
    /// The layers of an artifact, and those that have no name.
    Layers(Vec<Layer>, Seen),
    /// The one manifest of an index.
    Manifest(Digest),
}

/// A layer with files of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Its path in the model; of an archive the hex digits of its digest.
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) content: Content,
}

impl Manifest {
    /// What the manifest leads to.
    pub(crate) fn resolve(self, url: &Url) -> Result<Found, FetchError> {
        let refuse = |problem: String| FetchError::FormatRefused {
            what: printable(url),
            problem,
        };
        match (self.manifests, self.layers) {
            (Some(manifests), _) => {
                let [only] = manifests.as_slice() else {
                    let count = manifests.len();
                    return Err(refuse(format!(
                        "it is an index of {count} manifests, and a model is one: name the manifest by its digest"
                    )));
                };
                only.digest(url).map(Found::Manifest)
            }
            (None, Some(layers)) => {
                let (mut found, mut unnamed) = (Vec::new(), Seen::default());
                for layer in &layers {
                    match layer.read(url)? {
                        Some(layer) => found.push(layer),
                        None => unnamed.note(&format!("({})", layer.media_type)),
                    }
                }
                Ok(Found::Layers(found, unnamed))
            }
            (None, None) => Err(refuse(
                "it is no manifest of an image or artifact; name one with layers".to_owned(),
            )),
        }
    }
}

impl Descriptor {
    fn digest(&self, url: &Url) -> Result<Digest, FetchError> {
        self.digest.parse().map_err(|_| FetchError::FormatRefused {
            what: printable(url),
            problem: format!(
                "it names {:?}, and only digests of the form sha256: and 64 hex digits are taken",
                self.digest.chars().take(100).collect::<String>()
            ),
        })
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        let value = self.annotations.as_ref()?.get(name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// The layer; `None` for one that has no name, or is never part of what is served.
    fn read(&self, url: &Url) -> Result<Option<Layer>, FetchError> {
        if OTHER_LAYERS.iter().any(|kind| self.media_type.starts_with(kind)) {
            return Ok(None);
        }
        let digest = self.digest(url)?;
        let name = NAMES.into_iter().find_map(|name| self.annotation(name));
        let archive = self.packing(name.is_some());
        let (name, content) = match (archive, name) {
            (Some(""), _) => (digest.hex(), Content::Archive(Compression::None)),
            (Some("+gzip" | ".gzip"), _) => (digest.hex(), Content::Archive(Compression::Gzip)),
            (Some(other), _) => {
                return Err(FetchError::FormatRefused {
                    what: printable(url),
                    problem: format!(
                        "its layer {digest} is a tar archive with {other:?}, and only plain tar and tar+gzip are taken: publish the files raw, which is faster as well"
                    ),
                });
            }
            (None, Some(name)) => (name.to_owned(), Content::File),
            (None, None) => return Ok(None),
        };
        Ok(Some(Layer {
            name,
            digest,
            bytes: self.size,
            content,
        }))
    }

    /// What follows `.tar` in the type of a layer that is to be unpacked. A named layer is a file whatever its type
    /// says, since ORAS calls every file `tar`; a packed one is marked, or of ModelPack's own types.
    fn packing(&self, is_named: bool) -> Option<&str> {
        let is_marked = self.annotation(ORAS_UNPACK) == Some("true") || self.media_type.starts_with(MODEL_PACK);
        if is_named && !is_marked {
            return None;
        }
        let (_, packing) = self.media_type.rsplit_once(".tar")?;
        Some(packing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn resolve(manifest: Value) -> Result<Found, FetchError> {
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        manifest.resolve(&Url::parse("https://h/v2/m/manifests/v1").unwrap())
    }

    fn layer(kind: &str, annotations: &Value) -> Result<Vec<Layer>, FetchError> {
        let layer = json!({"mediaType": kind, "digest": DIGEST, "size": 7, "annotations": annotations});
        match resolve(json!({"schemaVersion": 2, "config": {}, "layers": [layer]}))? {
            Found::Layers(layers, _) => Ok(layers),
            Found::Manifest(_) => panic!("no artifact"),
        }
    }

    #[test]
    fn layers_are_named_as_model_pack_and_oras_do() {
        for (kind, annotations, name) in [
            (
                "application/vnd.cncf.model.weight.v1.raw",
                json!({"org.cncf.model.filepath": "sub/m.gguf", "org.opencontainers.image.title": "x"}),
                "sub/m.gguf",
            ),
            (
                "application/vnd.oci.image.layer.v1.tar",
                json!({"org.opencontainers.image.title": "m.gguf"}),
                "m.gguf",
            ),
        ] {
            let layers = layer(kind, &annotations).unwrap();
            assert_eq!((layers[0].name.as_str(), layers[0].content), (name, Content::File));
            assert_eq!(layers[0].bytes, 7);
        }
        assert_eq!(layer("application/octet-stream", &json!(null)).unwrap(), []);
    }

    #[test]
    fn archives_are_recognised_by_type_or_mark() {
        let named = json!({"org.cncf.model.filepath": "m.gguf"});
        let marked = json!({"org.opencontainers.image.title": "folder", "io.deis.oras.content.unpack": "true"});
        for (kind, annotations, compression) in [
            (
                "application/vnd.cncf.model.weight.v1.tar",
                named.clone(),
                Compression::None,
            ),
            (
                "application/vnd.cncf.model.weight.config.v1.tar+gzip",
                named.clone(),
                Compression::Gzip,
            ),
            ("application/vnd.oci.image.layer.v1.tar+gzip", marked, Compression::Gzip),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                json!(null),
                Compression::Gzip,
            ),
        ] {
            assert_eq!(
                layer(kind, &annotations).unwrap()[0].content,
                Content::Archive(compression),
                "{kind}"
            );
        }
        let error = layer("application/vnd.cncf.model.weight.v1.tar+zstd", &named).unwrap_err();
        assert_eq!(error.reason(), "FormatRefused");
        assert!(
            error.to_string().contains("zstd") && error.to_string().contains("raw"),
            "{error}"
        );
        assert_eq!(layer("application/vnd.cncf.model.code.v1.tar", &named).unwrap(), []);
    }

    #[test]
    fn index_is_followed_only_when_it_leads_to_one_manifest() {
        let one = json!({"mediaType": "x", "digest": DIGEST, "size": 7});
        assert!(matches!(
            resolve(json!({"manifests": [one]})).unwrap(),
            Found::Manifest(_)
        ));
        for wrong in [
            json!({"manifests": [one, one]}),
            json!({"manifests": []}),
            json!({"schemaVersion": 1}),
        ] {
            assert_eq!(resolve(wrong).unwrap_err().reason(), "FormatRefused");
        }
    }

    #[test]
    fn digests_of_another_kind_are_refused() {
        let error = resolve(json!({"layers": [{"mediaType": "x", "digest": "sha512:12", "size": 1}]})).unwrap_err();
        assert_eq!(error.reason(), "FormatRefused");
        assert!(error.to_string().contains("sha512:12"), "{error}");
    }
}
