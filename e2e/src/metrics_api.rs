//! A small aggregated API server for `external.metrics.k8s.io`: every metric has the value that the test sets. With it
//! the real horizontal autoscaler of pods works on a real API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context as _, Result};
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::jiff::Timestamp;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::cluster::{Cluster, Inside};

const GROUP: &str = "external.metrics.k8s.io";
const VERSION: &str = "v1beta1";

/// A server inside the cluster's network; ends when it is dropped.
#[derive(Debug)]
pub struct MetricsApi {
    value: Arc<AtomicI64>,
    _inside: Inside,
}

impl MetricsApi {
    /// Starts one on `port` of the loopback device in the cluster's network, and registers it with the API server.
    pub async fn start(cluster: &Cluster, port: u16) -> Result<Self> {
        let value = Arc::new(AtomicI64::new(0));
        let inside = cluster.inside()?;
        let acceptor = acceptor()?;
        let app = router(Arc::clone(&value));
        let (started, is_started) = tokio::sync::oneshot::channel();
        let served = inside.spawn(async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await;
            match listener {
                Ok(listener) => {
                    let _gone = started.send(Ok(()));
                    let _ended = axum::serve(Tls { listener, acceptor }, app).await;
                }
                Err(error) => {
                    let _gone = started.send(Err(error));
                }
            }
        });
        served?;
        is_started
            .await
            .context("the metrics server ended")?
            .with_context(|| format!("could not listen on port {port}"))?;
        let file = cluster.folder().join("metrics-api.json");
        std::fs::write(&file, registration(port).to_string())
            .with_context(|| format!("could not write {}", file.display()))?;
        let file = file.display().to_string();
        cluster.output("kubectl", &["apply", "-f", &file]).await?;
        let name = format!("apiservice/{VERSION}.{GROUP}");
        let arguments = ["wait", "--for=condition=Available", &name, "--timeout=60s"];
        cluster.output("kubectl", &arguments).await?;
        Ok(Self { value, _inside: inside })
    }

    /// From now on every metric has this value.
    pub fn set(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
    }
}

/// The API server finds us by a Service without an address of its own: there is no kube-proxy on a bare control plane.
fn registration(port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "scenario-metrics", "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": format!("{VERSION}.{GROUP}")},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": true,
                "service": {"name": "scenario-metrics", "namespace": "default", "port": port},
            },
        },
    ]})
}

fn router(value: Arc<AtomicI64>) -> Router {
    let base = format!("/apis/{GROUP}/{VERSION}");
    Router::new()
        .route(&base, get(resources))
        .route(&format!("{base}/namespaces/{{namespace}}/{{metric}}"), get(metric))
        .with_state(value)
}

async fn resources() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [{
            "name": "queue_length", "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"],
        }],
    }))
}

async fn metric(State(value): State<Arc<AtomicI64>>, Path((_, metric)): Path<(String, String)>) -> Json<Value> {
    Json(json!({
        "kind": "ExternalMetricValueList",
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {},
        "items": [{
            "metricName": metric,
            "metricLabels": {},
            "timestamp": Timestamp::now().to_string(),
            "value": value.load(Ordering::Relaxed).to_string(),
        }],
    }))
}

fn acceptor() -> Result<TlsAcceptor> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).context("could not make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("could not choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .context("could not use the certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // A caller that breaks off its handshake is no loss.
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
