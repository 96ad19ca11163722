//! The reads of a pass: everything that the decision needs, into one struct.
//!
//! Children come from caches that know this process's own writes, see [`crate::world::cache`]; what the pods say comes
//! from the poller. The API server itself is asked only for what no watch brings: a Service that may be somebody
//! else's, and the contents of a record from which pods are made.

use std::collections::BTreeSet;
use std::sync::Arc;

use escadre_crds::{LlmDeployment, ModelPolicy, names};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt as _};

use super::dependencies::{self, Dependencies};
use super::plan::Plan;
use super::revision::Record;
use super::validate::Valid;
use crate::context::{Context, Defaults};
use crate::kube_ext::apply::{CallError, within};
use crate::runtime_status::{Said, Traffic};
pub use crate::world::poller::{Probed, Report};

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
    /// Names of pods of other owners that carry our label.
    pub foreign: Vec<ForeignPod>,
    /// The Service of the object's name.
    pub service: Option<ObservedService>,
    /// Our revisions, without their contents.
    pub revisions: Vec<Arc<PartialObjectMeta<ControllerRevision>>>,
    /// What the spec names, and children that few objects have.
    pub dependencies: Dependencies,
    /// The policies that apply to the object, by name.
    pub policies: Vec<Arc<ModelPolicy>>,
    /// What applies where the object says nothing.
    pub defaults: Defaults,
}

/// One pod and what its process says.
#[derive(Clone, Debug)]
pub struct ObservedPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What its process says.
    pub report: Report,
    /// What it did for its clients.
    pub traffic: Option<Traffic>,
    /// What became of the probe prompt.
    pub probed: Probed,
}

impl ObservedPod {
    /// What its process said last.
    pub fn said(&self) -> Option<&Said> {
        match &self.report {
            Report::Said { said, .. } => Some(said),
            Report::NotAsked | Report::Waiting | Report::Unreachable(_) => None,
        }
    }
}

/// A pod that is not ours and carries our label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPod {
    /// Its name.
    pub name: String,
    /// Whether our Service selects it.
    pub is_selected: bool,
}

impl Observed {
    /// Whether a pod that can be asked was not asked yet, as in the first moments of this process: nothing can be said
    /// about the deployment that would be true.
    pub fn is_incomplete(&self) -> bool {
        self.pods.iter().any(|pod| pod.report == Report::Waiting)
    }
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
/// When a read fails. A pod that does not answer is an observation, not an error.
pub async fn observe(ctx: &Context, object: &LlmDeployment) -> Result<Observed, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let uid = object.uid().unwrap_or_default();
    let failed = |what| {
        let object = format!("{namespace}/{name}");
        move |source| Error { what, object, source }
    };
    let service = service(ctx, &namespace, &name).await.map_err(failed("service"))?;
    let dependencies = dependencies::observe(ctx, object)
        .await
        .map_err(failed("dependencies"))?;
    let (pods, foreign): (Vec<_>, Vec<_>) = ctx
        .world
        .pods
        .of(&namespace, &name)
        .into_iter()
        .partition(|pod| is_owned(pod.owner_references(), &uid));
    let probe = object.spec.rollout.probe();
    let pods = pods.into_iter().map(|pod| ObservedPod {
        report: ctx.world.poller.report(&pod),
        traffic: ctx.world.poller.traffic(&pod),
        probed: probe.map_or(Probed::NotAsked, |probe| ctx.world.poller.probed(&pod, probe)),
        pod,
    });
    let revisions = ctx.world.revisions.of(&namespace, &name).into_iter();
    Ok(Observed {
        pods: pods.collect(),
        foreign: foreign.iter().map(|pod| foreign_pod(pod)).collect(),
        service: service.map(|service| ObservedService {
            is_ours: is_owned(service.owner_references(), &uid),
            service,
        }),
        revisions: revisions
            .filter(|one| is_owned(one.owner_references(), &uid) && one.metadata.deletion_timestamp.is_none())
            .collect(),
        dependencies,
        policies: ctx.world.policies.of(&namespace),
        defaults: ctx.defaults.clone(),
    })
}

/// The Service of the object's name: from the cache when it carries our label, else from the API server, since it may be
/// somebody else's.
async fn service(ctx: &Context, namespace: &str, name: &str) -> Result<Option<Service>, CallError> {
    let known = ctx.world.services.of(namespace, name);
    if let Some(known) = known.into_iter().find(|service| service.name_any() == name) {
        return Ok(Some(Service::clone(&known)));
    }
    let services: Api<Service> = Api::namespaced(ctx.client.clone(), namespace);
    within(services.get_opt(name)).await
}

fn foreign_pod(pod: &Pod) -> ForeignPod {
    let component = pod.labels().get(names::LABEL_COMPONENT);
    ForeignPod {
        name: pod.name_any(),
        is_selected: component.is_some_and(|component| component == names::COMPONENT_RUNTIME)
            && pod.metadata.deletion_timestamp.is_none(),
    }
}

/// Whether an object with that UID is the controller among these owners.
pub fn is_owned(owners: &[OwnerReference], uid: &str) -> bool {
    owners
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Reads the contents of the records that the plan makes pods from. A record of the target that cannot be read was not
/// written by us: the plan becomes to make it anew. From another that cannot be read no pod is made.
///
/// # Errors
/// When the read fails. A record that has gone is not one: the next pass makes it, or does without.
pub async fn read_records(ctx: &Context, valid: &mut Valid, mut plan: Plan) -> Result<Plan, Error> {
    let revisions: BTreeSet<String> = plan.step.create.iter().map(|(revision, _)| revision.clone()).collect();
    let records: Api<ControllerRevision> = Api::namespaced(ctx.client.clone(), &valid.namespace);
    for revision in revisions {
        let Some(recorded) = valid.recorded.get(&revision) else {
            continue;
        };
        let found = within(records.get_opt(&recorded.identity.name)).await;
        let found = found.map_err(|source| Error {
            what: "record",
            object: format!("{}/{}", valid.namespace, valid.name),
            source,
        })?;
        match found.as_ref().and_then(Record::of) {
            Some(record) => {
                valid.records.insert(revision, record);
            }
            None if revision == valid.revision.as_str() && !valid.is_frozen => {
                return Ok(plan.remake(recorded.identity.clone()));
            }
            None => plan.step.create.retain(|(of, _)| *of != revision),
        }
    }
    Ok(plan)
}
