//! Applying Services, whose ports need more than server-side apply.

use escadre_crds::names;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::apply::{CallError, apply, within};

/// Applies a Service.
///
/// Ports are merged by their number. One that somebody else renumbered would stay beside ours under the same name, which
/// the API server refuses: then our ports take the place of all that are there, and the rest is applied.
///
/// # Errors
/// When the call fails.
pub async fn apply_service(api: &Api<Service>, service: &Service) -> Result<Service, CallError> {
    let refused = match apply(api, service).await {
        Err(error) if error.status().is_some_and(kube::core::Status::is_invalid) => error,
        result => return result,
    };
    let name = service.metadata.name.clone().unwrap_or_default();
    let ports = json!({"spec": {"ports": service.spec.as_ref().and_then(|spec| spec.ports.as_ref())}});
    let parameters = PatchParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match within(api.patch(&name, &parameters, &Patch::Merge(ports))).await {
        Ok(_) => apply(api, service).await,
        // What was wrong was something else.
        Err(_) => Err(refused),
    }
}
