//! The client that everything but the election uses: it asks the gate before every write, and counts every call.
//!
//! It sits around the whole client, so no write can go round it, whoever makes it.
//!
//! # Guarantees
//! - No request but `GET` leaves while the gate is shut.
//! - A write that has no answer when the lease runs out is dropped: the client's own retries end with it.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use tower_service::Service;

use crate::leader::{Gate, NotLeader};
use crate::metrics::{ApiCall, Metrics};

/// Puts the gate and the counts round a client.
pub fn gated(client: Client, gate: Gate, metrics: Arc<Metrics>) -> Client {
    let namespace = client.default_namespace().to_owned();
    Client::new(Gated { client, gate, metrics }, namespace)
}

struct Gated {
    client: Client,
    gate: Gate,
    metrics: Arc<Metrics>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Request<Body>> for Gated {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The inner client waits for its own room when it sends.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, gate, metrics) = (self.client.clone(), self.gate.clone(), Arc::clone(&self.metrics));
        Box::pin(async move {
            let mut call = describe(&request);
            let result = send(&client, &gate, request).await;
            call.code = match &result {
                Ok(response) => response.status().as_u16(),
                Err(_) => 0,
            };
            metrics.called(&call);
            result
        })
    }
}

async fn send(client: &Client, gate: &Gate, request: Request<Body>) -> Result<Response<Body>, BoxError> {
    if request.method() == Method::GET {
        return Ok(client.send(request).await?);
    }
    match gate.check()? {
        None => Ok(client.send(request).await?),
        Some(rest) => match tokio::time::timeout(rest, client.send(request)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(NotLeader.into()),
        },
    }
}

/// The verb and the resource of a request, as RBAC names them; the code comes later.
fn describe(request: &Request<Body>) -> ApiCall {
    let path = request.uri().path();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let skipped = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return ApiCall::new("get", "nonresource".to_owned()),
    };
    let mut parts: Vec<&str> = parts.skip(skipped).collect();
    // `namespaces/NAME/RESOURCE…`; `namespaces/NAME` alone is the namespace itself.
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let resource = match parts[..] {
        [] => "nonresource".to_owned(),
        [resource] | [resource, _] => resource.to_owned(),
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
    };
    let is_watch = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match (request.method(), parts.len()) {
        (&Method::GET, _) if is_watch => "watch",
        (&Method::GET, ..=1) => "list",
        (&Method::GET, _) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, ..=1) => "deletecollection",
        (&Method::DELETE, _) => "delete",
        _ => "other",
    };
    ApiCall::new(verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(method: Method, uri: &str) -> (String, String) {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let call = describe(&request);
        (call.verb.to_owned(), call.resource)
    }

    fn words(verb: &str, resource: &str) -> (String, String) {
        (verb.to_owned(), resource.to_owned())
    }

    #[test]
    fn calls_are_named_as_rbac_names_them() {
        let pods = "/api/v1/namespaces/a/pods";
        assert_eq!(described(Method::GET, pods), words("list", "pods"));
        assert_eq!(described(Method::POST, pods), words("create", "pods"));
        assert_eq!(
            described(Method::GET, "/api/v1/pods?limit=1&watch=true"),
            words("watch", "pods")
        );
        assert_eq!(
            described(Method::DELETE, "/api/v1/namespaces/a/pods/b"),
            words("delete", "pods")
        );
        assert_eq!(
            described(
                Method::PATCH,
                "/apis/escadre.dev/v1alpha1/namespaces/a/llmdeployments/b/status?force=true"
            ),
            words("patch", "llmdeployments/status")
        );
        assert_eq!(
            described(Method::GET, "/api/v1/namespaces/a"),
            words("get", "namespaces")
        );
        assert_eq!(described(Method::GET, "/version"), words("get", "nonresource"));
    }

    /// A client whose every request succeeds with an empty object.
    fn agreeable() -> Client {
        #[derive(Clone)]
        struct Agreeable;
        impl Service<Request<Body>> for Agreeable {
            type Response = Response<Body>;
            type Error = BoxError;
            type Future = std::future::Ready<Result<Response<Body>, BoxError>>;
            fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _request: Request<Body>) -> Self::Future {
                std::future::ready(Ok(Response::new(Body::from(b"{}".to_vec()))))
            }
        }
        Client::new(Agreeable, "default")
    }

    async fn send_through(gate: Gate, method: Method) -> Result<(), kube::Error> {
        let client = gated(agreeable(), gate, Arc::new(Metrics::default()));
        let request = Request::builder()
            .method(method)
            .uri("/api/v1/namespaces/a/pods")
            .body(Body::empty())
            .unwrap();
        client.send(request).await.map(drop)
    }

    #[tokio::test]
    async fn shut_gate_lets_reads_pass_and_nothing_else() {
        assert!(send_through(Gate::shut(), Method::GET).await.is_ok());
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let error = send_through(Gate::shut(), method).await.unwrap_err();
            assert!(error.to_string().contains("does not hold the lease"), "{error}");
        }
        assert!(send_through(Gate::open(), Method::DELETE).await.is_ok());
    }
}
