//! The only writes of a pass, in a written order: Service, record, deletions, creations, records that nothing needs.
//!
//! The record comes before the first pod, so that every pod can be rebuilt. Old pods go before new ones are made,
//! since they may hold the device that the new ones need. What is not deleted yet is seen again in the next pass.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, ResourceExt as _};

use super::build::{Built, Children};
use crate::context::Context;
use crate::kube_ext::apply::{CallError, create};
use crate::kube_ext::orphans::{Identity, delete};
use crate::kube_ext::services::apply_service;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {verb} {kind} {name}")]
pub struct Error {
    /// What was tried.
    pub verb: &'static str,
    /// The kind of object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why not.
    #[source]
    pub source: CallError,
}

impl Error {
    /// A sentence for users, with the API server's own words.
    pub fn words(&self) -> String {
        format!("{self}: {}", self.source.words())
    }

    /// Whether the world just moved on: the next pass sees it anew.
    pub fn is_conflict(&self) -> bool {
        self.source.status().is_some_and(kube::core::Status::is_conflict)
    }
}

/// Written.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// How many writes there were.
    pub writes: usize,
    /// A pod that the API server refused; the rest was not tried, since it is made from the same template.
    pub refused: Option<Refusal>,
}

/// A pod that the API server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pod's name.
    pub pod: String,
    /// The API server's words.
    pub message: String,
}

/// Writes what was built.
///
/// # Errors
/// With the first write that failed; those before it are done. A refused pod is not an error.
pub async fn apply(ctx: &Context, children: Children<Built>) -> Result<Children<Applied>, Error> {
    let Children {
        namespace,
        service,
        record,
        pods,
        delete_pods,
        delete_records,
        stage: Built,
    } = children;
    let pod_api: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    let record_api: Api<ControllerRevision> = Api::namespaced(ctx.client.clone(), &namespace);
    let mut applied = Applied::default();

    if let Some(service) = &service {
        let api: Api<Service> = Api::namespaced(ctx.client.clone(), &namespace);
        apply_service(&api, service)
            .await
            .map_err(failed("apply", "Service", &service.name_any()))?;
        applied.count(ctx, "apply", "Service");
    }
    if let Some(record) = &record {
        create(&record_api, record)
            .await
            .map_err(failed("create", "ControllerRevision", &record.name_any()))?;
        applied.count(ctx, "create", "ControllerRevision");
    }
    for pod in &delete_pods {
        remove(ctx, &pod_api, "Pod", pod, &mut applied).await?;
    }
    create_pods(ctx, &pod_api, &pods, &mut applied).await?;
    for record in &delete_records {
        remove(ctx, &record_api, "ControllerRevision", record, &mut applied).await?;
    }
    Ok(Children {
        namespace,
        service,
        record,
        pods,
        delete_pods,
        delete_records,
        stage: applied,
    })
}

async fn create_pods(ctx: &Context, api: &Api<Pod>, pods: &[Pod], applied: &mut Applied) -> Result<(), Error> {
    for pod in pods {
        let name = pod.name_any();
        match create(api, pod).await {
            Ok(_) => {
                applied.count(ctx, "create", "Pod");
                tracing::info!(pod = %name, namespace = pod.namespace().unwrap_or_default(), "pod created");
            }
            Err(error) if is_refusal(&error) => {
                applied.refused = Some(Refusal {
                    pod: name,
                    message: error.words(),
                });
                return Ok(());
            }
            Err(error) => return Err(failed("create", "Pod", &name)(error)),
        }
    }
    Ok(())
}

/// Whether the API server judged the pod itself, rather than being unable to take it.
fn is_refusal(error: &CallError) -> bool {
    error.status().is_some_and(|status| {
        status.is_forbidden()
            || status.is_invalid()
            || status.is_already_exists()
            || status.is_not_found()
            || status.code == 400
    })
}

async fn remove<K>(
    ctx: &Context,
    api: &Api<K>,
    kind: &'static str,
    object: &Identity,
    applied: &mut Applied,
) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    if delete(api, object)
        .await
        .map_err(failed("delete", kind, &object.name))?
    {
        applied.count(ctx, "delete", kind);
        tracing::info!(kind, name = object.name, "deleted");
    }
    Ok(())
}

fn failed(verb: &'static str, kind: &'static str, name: &str) -> impl FnOnce(CallError) -> Error {
    let name = name.to_owned();
    move |source| Error {
        verb,
        kind,
        name,
        source,
    }
}

impl Applied {
    fn count(&mut self, ctx: &Context, verb: &'static str, kind: &'static str) {
        self.writes += 1;
        ctx.metrics.wrote(verb, kind);
    }
}
