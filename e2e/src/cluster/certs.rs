//! Certificates and kubeconfigs of one cluster, from a certificate authority of its own.
//!
//! Everything is made anew at each start and never leaves the cluster's folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::network::{API_SERVICE_ADDRESS, NODE_ADDRESS};

/// Name of the real node.
pub const NODE_NAME: &str = "node-1";

/// Who holds a client certificate: file name, user, group.
const CLIENTS: &[(&str, &str, Option<&str>)] = &[
    ("admin", "escadre-admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
    ("kubelet", "system:node:node-1", Some("system:nodes")),
    ("coredns", "system:coredns", None),
    ("kwok", "system:kwok", Some("system:masters")),
    ("front-proxy-client", "front-proxy-client", None),
    ("apiserver-kubelet", "escadre-apiserver", Some("system:masters")),
];

/// The folder with the cluster's certificates.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes the authority and everything it signs.
    pub(crate) fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).context("could not make the certificate folder")?;
        let authority = authority()?;
        self.write("ca.crt", &authority.pem())?;
        self.write("ca.key", &authority.key().serialize_pem())?;
        for (name, user, group) in CLIENTS {
            let (certificate, key) = client(&authority, user, *group)?;
            self.write(&format!("{name}.crt"), &certificate)?;
            self.write(&format!("{name}.key"), &key)?;
        }
        let api_names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            NODE_ADDRESS,
            API_SERVICE_ADDRESS,
        ];
        self.write_server(&authority, "apiserver", &api_names)?;
        self.write_server(&authority, "kubelet-server", &[NODE_NAME, NODE_ADDRESS])?;
        let accounts = KeyPair::generate().context("could not make the key of service accounts")?;
        self.write("service-accounts.key", &accounts.serialize_pem())?;
        self.write("service-accounts.pub", &accounts.public_key_pem())
    }

    /// Path of a file as an argument.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes a kubeconfig for the client `name` that reaches the API server at `server`.
    pub(crate) fn write_kubeconfig(&self, name: &str, server: &str, context: &str, target: &Path) -> Result<()> {
        let data = |file: &str| -> Result<String> {
            let path = self.folder.join(file);
            let bytes = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
            Ok(STANDARD.encode(bytes))
        };
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {"server": server, "certificate-authority-data": data("ca.crt")?}}],
            "users": [{"name": name, "user": {
                "client-certificate-data": data(&format!("{name}.crt"))?,
                "client-key-data": data(&format!("{name}.key"))?,
            }}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": name}}],
            "current-context": context,
        });
        write_private(target, &serde_json::to_string_pretty(&config)?)
    }

    fn write_server(&self, authority: &Authority, name: &str, names: &[&str]) -> Result<()> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).context("could not name a server certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = sign(authority, &mut params)?;
        self.write(&format!("{name}.crt"), &certificate)?;
        self.write(&format!("{name}.key"), &key)
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        write_private(&self.folder.join(name), content)
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Result<Authority> {
    let key = KeyPair::generate().context("could not make the authority's key")?;
    let mut params = CertificateParams::new(Vec::<String>::new()).context("could not describe the authority")?;
    params.distinguished_name.push(DnType::CommonName, "escadre-testbed");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    CertifiedIssuer::self_signed(params, key).context("could not make the authority's certificate")
}

fn client(authority: &Authority, user: &str, group: Option<&str>) -> Result<(String, String)> {
    let mut params = CertificateParams::new(Vec::<String>::new()).context("could not describe a client")?;
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(authority, &mut params)
}

fn sign(authority: &Authority, params: &mut CertificateParams) -> Result<(String, String)> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().context("could not make a key")?;
    let certificate = params
        .signed_by(&key, authority)
        .context("could not sign a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("could not write {}", path.display()))
}
