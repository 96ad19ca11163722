//! TLS of the API, with a certificate that is replaced while the server runs.

use crate::watched;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::info;

/// The files of a Secret of the type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TlsError {
    file: String,
    problem: String,
}

/// A certificate with its key, as it was last read.
#[derive(Debug)]
pub struct Tls {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Tls {
    /// Reads `tls.crt` and `tls.key` in a folder.
    ///
    /// # Errors
    /// When they are not there, or no certificate and its key.
    pub fn read(folder: &Path) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Arc::new(read(folder)?));
        Ok(Arc::new(Self { current }))
    }

    /// Reads the folder again and again, so that a new certificate is used for new connections.
    pub async fn watch(self: Arc<Self>, folder: PathBuf) {
        let take = |found: CertifiedKey| {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            if current.cert != found.cert {
                *current = Arc::new(found);
                info!("the certificate of the API has changed");
            }
        };
        watched::follow("the certificate of the API", move || read(&folder), take).await;
    }

    /// What takes connections.
    ///
    /// # Errors
    /// Never with the versions of TLS that are built in.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config = builder
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(folder: &Path) -> Result<CertifiedKey, TlsError> {
    let fault = |file: &str| {
        let file = folder.join(file).display().to_string();
        move |problem: String| TlsError { file, problem }
    };
    let bytes = |file: &str| fs::read(folder.join(file)).map_err(|error| fault(file)(error.to_string()));
    let certificates = CertificateDer::pem_slice_iter(&bytes(CERTIFICATE)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(CERTIFICATE)(format!("not a certificate in PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(fault(CERTIFICATE)("there is no certificate in it, in PEM".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes(KEY)?)
        .map_err(|error| fault(KEY)(format!("not a private key in PEM: {error}")))?;
    CertifiedKey::from_der(certificates, key, &ring::default_provider())
        .map_err(|error| fault(KEY)(format!("does not fit to {CERTIFICATE}: {error}")))
}

/// A connection, with or without TLS.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, parts),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
