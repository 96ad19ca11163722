//! Spans of requests for a collector of OpenTelemetry, when one is named: OTLP over HTTP, with the names that the
//! conventions for generative AI have. They never hold what was asked or answered.
//!
//! # Guarantees
//! No request waits for the collector or fails because of it. Spans that have ended wait in a bounded queue for a thread of
//! the SDK; those that find it full are lost.

mod export;
mod span;

pub(crate) use span::{Ended, RequestSpan};

use crate::args::{Identity, TracingArgs};
use crate::context::random_id;
use export::Sender;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::resource::{
    EnvResourceDetector, ResourceDetector as _, SdkProvidedResourceDetector, TelemetryResourceDetector,
};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use std::time::Duration;
use tracing::{info, warn};
use url::Url;

/// What spans say of themselves, unless the environment names another.
const SERVICE: &str = "escadre-runtime";
/// Where collectors take spans.
const PATH: &str = "/v1/traces";
/// How long the end of the process waits for spans to be sent.
const FLUSH: Duration = Duration::from_secs(2);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Not an address of a collector.
    #[error("it must be a URL with http:// or https:// and a host, such as http://collector:4318")]
    Endpoint,
    /// No client.
    #[error("could not prepare the client for the collector")]
    Client(#[source] reqwest::Error),
    /// No exporter.
    #[error("could not prepare the exporter of spans")]
    Exporter(#[source] ExporterBuildError),
}

/// Makes spans, which are sent in the background. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Tracer {
    /// What the arguments ask for; nothing when they name no collector.
    ///
    /// # Assumptions
    /// Runs inside the Tokio runtime that sends the spans.
    pub fn start(args: &TracingArgs, identity: &Identity) -> Result<Option<Self>, TraceError> {
        let Some(address) = address(args)? else {
            return Ok(None);
        };
        let sender = Sender::new(&address).map_err(TraceError::Client)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(address.as_str())
            .with_http_client(sender)
            .build()
            .map_err(TraceError::Exporter)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(identity))
            .with_sampler(Sampler::parent_based(Sampler::TraceIdRatioBased(args.trace_sampling)))
            .with_batch_exporter(exporter)
            .build();
        let scope = InstrumentationScope::builder(SERVICE).with_version(env!("CARGO_PKG_VERSION"));
        info!(
            collector = address.origin().ascii_serialization(),
            sampling = args.trace_sampling,
            "spans are sent"
        );
        Ok(Some(Self {
            tracer: provider.tracer_with_scope(scope.build()),
            provider,
        }))
    }

    /// Sends what is waiting, for a short time at most. There are no spans after that.
    pub async fn end(&self) {
        let provider = self.provider.clone();
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
        let is_sent = matches!(ended.await, Ok(Ok(()) | Err(OTelSdkError::AlreadyShutdown)));
        if !is_sent {
            warn!("the last spans were not sent in time");
        }
    }
}

/// Where spans go.
fn address(args: &TracingArgs) -> Result<Option<Url>, TraceError> {
    // An empty variable is as good as none.
    let given = |text: &Option<String>| {
        let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty());
        text.map(parse).transpose()
    };
    let mut base = given(&args.otlp_endpoint)?;
    if let Some(base) = &mut base {
        let path = format!("{}{PATH}", base.path().trim_end_matches('/'));
        base.set_path(&path);
    }
    Ok(given(&args.otlp_traces_endpoint)?.or(base))
}

fn parse(text: &str) -> Result<Url, TraceError> {
    let address = Url::parse(text).ok();
    let address = address.filter(|address| matches!(address.scheme(), "http" | "https") && address.has_host());
    address.ok_or(TraceError::Endpoint)
}

/// Who sends the spans. What the environment says of it goes before.
fn resource(identity: &Identity) -> Resource {
    let name = SdkProvidedResourceDetector.detect().get(&Key::new("service.name"));
    let name = name.filter(|name| !name.as_str().starts_with("unknown_service"));
    let instance = identity.pod_uid.clone().unwrap_or_else(|| random_id(""));
    let pod = [("k8s.pod.name", &identity.pod_name), ("k8s.pod.uid", &identity.pod_uid)];
    let pod = pod
        .into_iter()
        .filter_map(|(key, value)| Some(KeyValue::new(key, value.clone()?)));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_attributes(pod)
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_service_name(name.unwrap_or_else(|| SERVICE.into()))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(endpoint: Option<&str>, traces_endpoint: Option<&str>) -> TracingArgs {
        TracingArgs {
            otlp_endpoint: endpoint.map(str::to_owned),
            otlp_traces_endpoint: traces_endpoint.map(str::to_owned),
            trace_sampling: 1.0,
        }
    }

    #[test]
    fn path_is_appended_to_the_base_and_not_to_a_whole_address() {
        let of = |endpoint, traces_endpoint| {
            let address = address(&args(endpoint, traces_endpoint)).unwrap();
            address.map(|address| address.to_string())
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(" "), Some("")), None);
        for base in ["http://collector:4318", "http://collector:4318/"] {
            assert_eq!(of(Some(base), None).unwrap(), "http://collector:4318/v1/traces");
        }
        assert_eq!(of(Some("https://c/otlp"), None).unwrap(), "https://c/otlp/v1/traces");
        assert_eq!(of(Some("http://a:1"), Some("http://b:2/x")).unwrap(), "http://b:2/x");
    }

    #[test]
    fn addresses_of_something_else_are_refused() {
        for bad in ["collector:4318", "grpc://collector:4317", "http://", "/v1/traces"] {
            assert!(address(&args(Some(bad), None)).is_err(), "{bad}");
        }
    }

    #[test]
    fn resource_is_the_pod() {
        let identity = Identity {
            pod_uid: Some("uid-7".into()),
            pod_name: Some("m-abc-0".into()),
            revision: None,
        };
        let resource = resource(&identity);
        let get = |key: &'static str| resource.get(&Key::new(key)).map(|value| value.to_string());
        assert_eq!(get("service.instance.id").as_deref(), Some("uid-7"));
        assert_eq!(get("k8s.pod.name").as_deref(), Some("m-abc-0"));
        assert_eq!(get("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
}
