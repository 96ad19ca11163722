//! The only writes of a pass, in a written order: record, overlay files, labels, deletions, creations, surroundings,
//! records that nothing needs; and beside them the Service, which no pod waits for. What was written is told to the
//! caches, so that the next pass does not look at a past without it.
//!
//! The record comes before the first pod, so that every pod can be rebuilt. Old pods go before new ones are made,
//! since they may hold the device that the new ones need. What is not deleted yet is seen again in the next pass.

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::core::{PartialObjectMetaExt as _, Status};
use kube::{Api, ResourceExt as _};

use super::build::{Built, Children};
use super::observe::is_owned;
use super::surroundings;
use crate::context::Context;
use crate::kube_ext::apply::{CallError, create, relabel, within};
use crate::kube_ext::orphans::{Identity, delete};
use crate::kube_ext::services::apply_service;
use crate::world::trim::{trim, trim_pod};

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
    /// A pod that the API server refused; not all others were tried, since they are made from the same template.
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
    // Both to their ends: of a write that is dropped half-way nobody knows whether it was carried out.
    let (service, others) = tokio::join!(write_service(ctx, &children), write_others(ctx, &children));
    service?;
    let refused = others?;
    Ok(children.into_stage(Applied { refused }))
}

async fn write_service(ctx: &Context, children: &Children<Built>) -> Result<(), Error> {
    let Some(service) = &children.service else {
        return Ok(());
    };
    let api: Api<Service> = Api::namespaced(ctx.client.clone(), &children.namespace);
    let mut written = apply_service(&api, service)
        .await
        .map_err(failed("apply", "Service", &service.name_any()))?;
    trim(&mut written);
    ctx.world.services.created(written);
    ctx.metrics.wrote("apply", "Service");
    Ok(())
}

async fn write_others(ctx: &Context, children: &Children<Built>) -> Result<Option<Refusal>, Error> {
    let pod_api: Api<Pod> = Api::namespaced(ctx.client.clone(), &children.namespace);
    let record_api: Api<ControllerRevision> = Api::namespaced(ctx.client.clone(), &children.namespace);
    if let Some(record) = &children.record {
        let written =
            create(&record_api, record)
                .await
                .map_err(failed("create", "ControllerRevision", &record.name_any()))?;
        let mut written = written.metadata.into_response_partial();
        trim(&mut written);
        ctx.world.revisions.created(written);
        ctx.metrics.wrote("create", "ControllerRevision");
    }
    surroundings::before_pods(ctx, &children.namespace, &children.surroundings).await?;
    for (pod, labels) in &children.relabel_pods {
        relabel(&pod_api, pod, labels)
            .await
            .map_err(failed("relabel", "Pod", &pod.name))?;
        ctx.metrics.wrote("patch", "Pod");
    }
    let deletions = children.delete_pods.iter().map(async |pod| {
        remove(ctx, &pod_api, "Pod", pod).await?;
        ctx.world.pods.deleted(&pod.uid);
        Ok(())
    });
    join_all(deletions).await.into_iter().collect::<Result<(), Error>>()?;
    let refused = create_pods(ctx, &pod_api, &children.pods).await?;
    surroundings::after_pods(ctx, &children.namespace, &children.surroundings).await?;
    for record in &children.delete_records {
        remove(ctx, &record_api, "ControllerRevision", record).await?;
        ctx.world.revisions.deleted(&record.uid);
    }
    Ok(refused)
}

/// Creates pods: one, then two, four and so on at once, so that a template that the API server refuses costs few calls.
async fn create_pods(ctx: &Context, api: &Api<Pod>, pods: &[Pod]) -> Result<Option<Refusal>, Error> {
    let (mut rest, mut at_once) = (pods, 1);
    while !rest.is_empty() {
        let (batch, others) = rest.split_at(at_once.min(rest.len()));
        let created = join_all(batch.iter().map(|pod| create_pod(ctx, api, pod))).await;
        let refusals = created.into_iter().collect::<Result<Vec<_>, _>>()?;
        if let Some(refusal) = refusals.into_iter().flatten().next() {
            return Ok(Some(refusal));
        }
        (rest, at_once) = (others, at_once * 2);
    }
    Ok(None)
}

/// Creates one pod. Returns why not, when the API server refused it.
async fn create_pod(ctx: &Context, api: &Api<Pod>, pod: &Pod) -> Result<Option<Refusal>, Error> {
    let name = pod.name_any();
    match create(api, pod).await {
        Ok(mut created) => {
            ctx.metrics.wrote("create", "Pod");
            trim_pod(&mut created);
            ctx.world.pods.created(created);
            tracing::info!(pod = %name, namespace = pod.namespace().unwrap_or_default(), "pod created");
            Ok(None)
        }
        Err(error) if error.status().is_some_and(Status::is_already_exists) => recover(ctx, api, pod).await,
        Err(error) if is_refusal(&error) => Ok(Some(Refusal {
            pod: name,
            message: error.words(),
        })),
        Err(error) => Err(failed("create", "Pod", &name)(error)),
    }
}

/// A pod of that name is there, though no watch tells of it: its labels were taken off. When it is ours they are put
/// back; a foreign one is left alone and named.
async fn recover(ctx: &Context, api: &Api<Pod>, wanted: &Pod) -> Result<Option<Refusal>, Error> {
    let name = wanted.name_any();
    let there = within(api.get_opt(&name)).await.map_err(failed("get", "Pod", &name))?;
    let Some(mut there) = there else {
        return Ok(None);
    };
    let owner = wanted.owner_references().first().map(|owner| owner.uid.as_str());
    if !owner.is_some_and(|owner| is_owned(there.owner_references(), owner)) {
        return Ok(Some(Refusal {
            message: format!("a pod named {name} exists already and does not belong to this object; delete it"),
            pod: name,
        }));
    }
    let identity = Identity {
        name: name.clone(),
        uid: there.uid().unwrap_or_default(),
    };
    relabel(api, &identity, wanted.labels())
        .await
        .map_err(failed("relabel", "Pod", &name))?;
    ctx.metrics.wrote("patch", "Pod");
    there.labels_mut().extend(wanted.labels().clone());
    trim_pod(&mut there);
    ctx.world.pods.created(there);
    Ok(None)
}

/// Whether the API server judged the pod itself, rather than being unable to take it.
fn is_refusal(error: &CallError) -> bool {
    error.status().is_some_and(|status| {
        status.is_forbidden() || status.is_invalid() || status.is_not_found() || status.code == 400
    })
}

pub(super) async fn remove<K>(ctx: &Context, api: &Api<K>, kind: &'static str, object: &Identity) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    if delete(api, object)
        .await
        .map_err(failed("delete", kind, &object.name))?
    {
        ctx.metrics.wrote("delete", kind);
        tracing::info!(kind, name = object.name, "deleted");
    }
    Ok(())
}

pub(super) fn failed(verb: &'static str, kind: &'static str, name: &str) -> impl FnOnce(CallError) -> Error {
    let name = name.to_owned();
    move |source| Error {
        verb,
        kind,
        name,
        source,
    }
}
