//! The only reads of a pass: everything that the decision needs, into one struct.
//!
//! Lists come from the API server itself, not from a cache: a decision that deletes must not look at the past.

use std::net::IpAddr;

use escadre_crds::{LlmDeployment, names};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, Resource as _, ResourceExt as _};

use super::dependencies::{self, Dependencies};
use crate::context::{Context, Defaults};
use crate::kube_ext::apply::{CallError, within};
use crate::runtime_status::Said;

/// How many pods of one object are asked at once.
const POLLS_AT_ONCE: usize = 16;

/// A read that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not read the {what} of {object}")]
pub struct Error {
    /// What was read.
    pub what: &'static str,
    /// Whose.
    pub object: String,
    /// Why not.
    #[source]
    pub source: CallError,
}

/// The world, as far as one object is concerned.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Our pods, by name. Pods of other owners are not in here, whatever their labels.
    pub pods: Vec<ObservedPod>,
    /// The Service of the object's name.
    pub service: Option<ObservedService>,
    /// Our revisions.
    pub revisions: Vec<ControllerRevision>,
    /// What the spec names, and children that few objects have.
    pub dependencies: Dependencies,
    /// What applies where the object says nothing.
    pub defaults: Defaults,
}

/// One pod and what its process says.
#[derive(Clone, Debug)]
pub struct ObservedPod {
    /// The pod.
    pub pod: Pod,
    /// What its process says.
    pub report: Report,
}

/// What a pod's process says.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// It has no address yet, or has ended.
    NotAsked,
    /// It was asked and did not answer.
    Unreachable(String),
    /// It answered, now or a moment ago.
    Said {
        /// The answer.
        said: Box<Said>,
        /// Whether the answer is an older one, since the last question was lost.
        stale: bool,
    },
}

/// The Service of the object's name.
#[derive(Clone, Debug)]
pub struct ObservedService {
    /// The Service.
    pub service: Service,
    /// Whether it is ours.
    pub is_ours: bool,
}

/// Reads everything.
///
/// # Errors
/// When a list or a get fails. A pod that does not answer is an observation, not an error.
pub async fn observe(ctx: &Context, object: &LlmDeployment) -> Result<Observed, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let uid = object.uid().unwrap_or_default();
    let failed = |what| {
        let object = format!("{namespace}/{name}");
        move |source| Error { what, object, source }
    };

    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    let revisions: Api<ControllerRevision> = Api::namespaced(ctx.client.clone(), &namespace);
    let services: Api<Service> = Api::namespaced(ctx.client.clone(), &namespace);
    let ours = ListParams::default().labels(&names::selector(&name));
    let of_this = ListParams::default().labels(&format!("{}={name}", names::LABEL_DEPLOYMENT));

    let (pods, revisions, service) = tokio::join!(
        within(pods.list(&ours)),
        within(revisions.list(&of_this)),
        within(services.get_opt(&name)),
    );
    let pods = pods.map_err(failed("pods"))?;
    let revisions = revisions.map_err(failed("revisions"))?;
    let service = service.map_err(failed("service"))?;

    let revisions: Vec<ControllerRevision> = revisions
        .items
        .into_iter()
        .filter(|revision| is_owned(revision.owner_references(), &uid))
        .collect();
    let dependencies = dependencies::observe(ctx, object, &revisions)
        .await
        .map_err(failed("dependencies"))?;

    let mut pods: Vec<Pod> = pods
        .items
        .into_iter()
        .filter(|pod| is_owned(pod.owner_references(), &uid))
        .collect();
    pods.sort_by_key(Pod::name_any);
    let pods = futures::stream::iter(pods)
        .map(async |pod| {
            let report = ask(ctx, &pod).await;
            ObservedPod { pod, report }
        })
        .buffered(POLLS_AT_ONCE)
        .collect()
        .await;
    Ok(Observed {
        pods,
        service: service.map(|service| ObservedService {
            is_ours: is_owned(service.owner_references(), &uid),
            service,
        }),
        revisions,
        dependencies,
        defaults: ctx.defaults.clone(),
    })
}

pub(super) fn is_owned(owners: &[OwnerReference], uid: &str) -> bool {
    owners
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

async fn ask(ctx: &Context, pod: &Pod) -> Report {
    let Some(ip) = askable(pod) else {
        return Report::NotAsked;
    };
    let uid = pod.uid().unwrap_or_default();
    let now = ctx.clock.now();
    match ctx.status_client.ask(ip).await {
        Ok(said) if said.pod_uid.as_deref().is_some_and(|answered| answered != uid) => {
            ctx.metrics.polled("other_pod");
            Report::Unreachable(format!("another pod answers at {ip}"))
        }
        Ok(said) => {
            ctx.metrics.polled("ok");
            ctx.last_answers.keep(&uid, &said, now);
            Report::Said {
                said: Box::new(said),
                stale: false,
            }
        }
        Err(error) => {
            ctx.metrics.polled((&error).into());
            tracing::debug!(pod = %pod.name_any(), error = &error as &dyn std::error::Error, "no status from the pod");
            match ctx.last_answers.recall(&uid, now) {
                Some(said) => Report::Said {
                    said: Box::new(said),
                    stale: true,
                },
                None => Report::Unreachable(error.to_string()),
            }
        }
    }
}

/// The address of a pod that can answer: it runs, and is not on its way out.
fn askable(pod: &Pod) -> Option<IpAddr> {
    if pod.meta().deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let started = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
    if !started {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}
