//! Judges the raw spec together with what was observed. Pure. What comes out is the single input of the next steps.
//!
//! The schema and its rules refuse most mistakes at `kubectl apply`; what needs other objects, or a closer look, is
//! judged here. A rejected spec changes nothing: pods that run go on running.

use std::collections::BTreeMap;

use escadre_crds::condition::{ConditionType, Reason};
use escadre_crds::v1alpha1::{
    Access, AccessLimits, Disruption, ImagePullPolicy, LlmDeploymentSpec, LlmDeploymentStatus, ModelFormat, Network,
    OnViolation, Placement, PodMonitorMode, Resources, Rollout, RuntimeSpec, ServiceSpec,
};
use escadre_crds::{LlmDeployment, names};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};
use serde_json::Value;

use super::build;
use super::dependencies::{self, Dependencies};
use super::diagnose::{Diagnosis, diagnose};
use super::observe::{Observed, ObservedPod};
use super::plan::PodFacts;
use super::revision::{AccessIntent, Intent, Record, Recorded, Revision, Settings, recorded, sha256};
use crate::kube_ext::orphans::Identity;
use crate::policy::{self, Judgement};

/// Why a spec cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// For machines.
    pub reason: Reason,
    /// For people: the field and what to do.
    pub message: String,
    /// Whether pods that run must end, once they have answered what they answer.
    pub drains: bool,
}

/// A spec that can be followed, with everything that the next steps may use.
#[derive(Clone, Debug)]
pub struct Valid {
    /// Name of the object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The controller reference that every child carries.
    pub owner: OwnerReference,
    /// What the user wants of each pod: what makes the revision.
    pub intent: Intent,
    /// The name of that revision.
    pub revision: Revision,
    /// What new revisions take over, and running ones do not.
    pub settings: Settings,
    /// What is recorded of each revision, by its name.
    pub recorded: BTreeMap<String, Recorded>,
    /// The contents of the records that pods are made from; read when they are needed.
    pub records: BTreeMap<String, Record>,
    /// The status before this pass.
    pub before: LlmDeploymentStatus,
    /// How a new revision replaces another.
    pub rollout: Rollout,
    /// The spec cannot be followed: this is what was asked for before, and only pods are healed.
    pub is_frozen: bool,
    /// How many pods there should be: none when suspended.
    pub replicas: u32,
    /// How many pods there should be, suspended or not.
    pub size: u32,
    /// Whether `spec.suspend` is set.
    pub suspended: bool,
    /// The Service that is wanted.
    pub service: ServiceSpec,
    /// The Service that is there.
    pub service_before: Option<Service>,
    /// Image for a new revision.
    pub image: String,
    /// Pull policy for a new revision.
    pub pull_policy: &'static str,
    /// The texts of the overlay files, by path.
    pub files: BTreeMap<String, String>,
    /// What may be done to the pods.
    pub disruption: Disruption,
    /// Whether a `PodMonitor` is wanted, and can be.
    pub wants_pod_monitor: bool,
    /// What was found of that, and of what the spec names.
    pub dependencies: Dependencies,
    /// What each client may use.
    pub limits: Option<AccessLimits>,
    /// Our living pods with their annotations.
    pub annotated: Vec<(Identity, BTreeMap<String, String>)>,
    /// Where it does not keep to policies that only want to be told.
    pub alerts: Vec<String>,
    /// The template of a new revision.
    pub template: PodTemplateSpec,
}

/// Judges.
///
/// # Errors
/// [`Rejected`] with the first field that cannot work.
pub fn validate(object: &LlmDeployment, observed: &Observed) -> Result<Valid, Rejected> {
    let name = object.name_any();
    let spec = &object.spec;
    let Some(owner) = object.controller_owner_ref(&()) else {
        return Err(invalid(
            "metadata has no UID; the object did not come from an API server".to_owned(),
        ));
    };
    if name.len() > names::NAME_LIMIT {
        return Err(invalid(format!(
            "metadata.name must have at most {} characters",
            names::NAME_LIMIT
        )));
    }
    check_source(&spec.model.source)?;
    check_digest(&spec.model.verification.digest)?;
    let replicas = u32::try_from(spec.replicas)
        .map_err(|_| invalid(format!("spec.replicas must be 0 or more, it is {}", spec.replicas)))?;
    if let Some(resources) = &spec.resources {
        check_resources(resources)?;
    }
    check_access(spec.access.as_ref())?;
    let service_before = own_service(&name, observed)?;
    policy::check_own(spec).map_err(invalid)?;
    let judgement = policy::judge(spec, &observed.policies);
    dependencies::check(spec, &observed.dependencies)?;
    let files = dependencies::files(spec, &observed.dependencies)?;

    let intent = Intent {
        requirements: Some(judgement.requirements.clone()).filter(|demanded| !demanded.is_empty()),
        ..intent(spec, &name, &files)
    };
    let revision = intent.revision_name();
    check_policies(&judgement, is_known(object, &revision))?;
    let runtime = spec.runtime.as_ref();
    let mut valid = Valid {
        recorded: recorded(&observed.revisions, &name),
        records: BTreeMap::new(),
        before: object.status.clone().unwrap_or_default(),
        rollout: spec.rollout.clone(),
        is_frozen: false,
        settings: Settings {
            endpoint: spec.model.endpoint.clone(),
            secret: spec.model.secret_ref.as_ref().map(|secret| secret.name.clone()),
            drain_seconds: u32::try_from(spec.drain.timeout_seconds)
                .map_err(|_| invalid("spec.drain.timeoutSeconds must be 0 or more".to_owned()))?,
            tracing: spec.observability.tracing.clone(),
        },
        image: runtime
            .and_then(|runtime| runtime.image.clone())
            .unwrap_or_else(|| observed.defaults.runtime_image.clone()),
        pull_policy: runtime
            .and_then(|runtime| runtime.image_pull_policy)
            .map_or_else(|| <&str>::from(observed.defaults.pull_policy), ImagePullPolicy::as_str),
        files,
        disruption: spec.disruption.clone(),
        wants_pod_monitor: spec.observability.pod_monitor != PodMonitorMode::Disabled
            && observed.dependencies.has_pod_monitors,
        dependencies: observed.dependencies.clone(),
        limits: spec.access.as_ref().and_then(|access| access.limits),
        annotated: annotated(observed),
        alerts: judgement
            .violations
            .into_iter()
            .map(|violation| violation.message)
            .collect(),
        template: PodTemplateSpec::default(),
        replicas: if spec.suspend { 0 } else { replicas },
        size: replicas,
        suspended: spec.suspend,
        namespace: object.namespace().unwrap_or_default(),
        service: spec.service.clone(),
        name,
        owner,
        intent,
        revision,
        service_before,
    };
    valid.template = build::template(&valid).map_err(invalid)?;
    Ok(valid)
}

/// What was asked for before a spec that cannot be followed, so that its pods are healed. `None`: nothing was.
pub fn held(object: &LlmDeployment, observed: &Observed, rejected: &Rejected) -> Option<Valid> {
    let before = object.status.clone()?;
    let name = object.name_any();
    let recorded = recorded(&observed.revisions, &name);
    let revision = before
        .target_revision
        .clone()
        .filter(|target| recorded.contains_key(target))?;
    let size = u32::try_from(object.spec.replicas).ok()?;
    Some(Valid {
        owner: object.controller_owner_ref(&())?,
        namespace: object.namespace().unwrap_or_default(),
        intent: Intent::default(),
        revision: Revision::named(revision),
        settings: Settings::default(),
        records: BTreeMap::new(),
        rollout: object.spec.rollout.clone(),
        is_frozen: true,
        replicas: if object.spec.suspend || rejected.drains {
            0
        } else {
            size
        },
        size,
        suspended: object.spec.suspend,
        service: object.spec.service.clone(),
        service_before: None,
        image: String::new(),
        pull_policy: "",
        files: BTreeMap::new(),
        disruption: object.spec.disruption.clone(),
        wants_pod_monitor: false,
        dependencies: observed.dependencies.clone(),
        limits: object.spec.access.as_ref().and_then(|access| access.limits),
        annotated: annotated(observed),
        alerts: Vec::new(),
        template: PodTemplateSpec::default(),
        name,
        recorded,
        before,
    })
}

/// What the user wants of each pod, without what has no effect.
fn intent(spec: &LlmDeploymentSpec, name: &str, files: &BTreeMap<String, String>) -> Intent {
    Intent {
        source: spec.model.source.clone(),
        revision: spec.model.revision.clone(),
        files: sorted(spec.model.files.as_deref()),
        served_name: spec.model.served_name.clone().unwrap_or_else(|| name.to_owned()),
        digest: spec.model.verification.digest.clone(),
        runtime: spec
            .runtime
            .clone()
            .filter(|runtime| *runtime != RuntimeSpec::default()),
        resources: spec.resources.as_ref().and_then(normal_resources),
        placement: spec
            .placement
            .clone()
            .filter(|placement| *placement != Placement::default()),
        format: Some(spec.model.format).filter(|format| *format != ModelFormat::Auto),
        overlay: (!files.is_empty()).then(|| digests(files)),
        service_account_name: spec.service_account_name.clone(),
        pod_labels: spec.pod_labels.clone().filter(|labels| !labels.is_empty()),
        pod_annotations: spec
            .pod_annotations
            .clone()
            .filter(|annotations| !annotations.is_empty()),
        network: spec.network.clone().filter(|network| *network != Network::default()),
        pod_overrides: spec.pod_overrides.clone().filter(|patch| !is_empty(patch)),
        access: spec.access.as_ref().map(access),
        restart_token: spec.restart_token.clone(),
        requirements: None,
    }
}

/// What of the access makes a revision.
fn access(access: &Access) -> AccessIntent {
    let Access {
        api_keys_secret_ref,
        required,
        limits,
        tls,
    } = access;
    AccessIntent {
        keys: api_keys_secret_ref.as_ref().map(|secret| secret.name.clone()),
        required: required.filter(|required| !required),
        has_limits: limits.is_some(),
        tls: tls.as_ref().map(|tls| tls.secret_ref.name.clone()),
    }
}

/// The SHA-256 of each text.
fn digests(files: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let digests = files.iter().map(|(path, text)| (path.clone(), sha256(text.as_bytes())));
    digests.collect()
}

fn is_empty(patch: &Value) -> bool {
    patch.is_null() || patch.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Our living pods with their annotations.
fn annotated(observed: &Observed) -> Vec<(Identity, BTreeMap<String, String>)> {
    let pods = observed.pods.iter().map(|one| &one.pod);
    let living = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    living
        .map(|pod| {
            let identity = Identity {
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
            };
            (identity, pod.annotations().clone())
        })
        .collect()
}

fn invalid(message: String) -> Rejected {
    Rejected {
        reason: Reason::InvalidSpec,
        message,
        drains: false,
    }
}

/// Whether policies allow a spec to be followed. One that only wants to be told stands in the way of what is new or edited,
/// and of nothing that runs.
fn check_policies(judgement: &Judgement, is_known: bool) -> Result<(), Rejected> {
    match judgement.strictest() {
        None => Ok(()),
        Some(violation) if is_known && violation.on_violation == OnViolation::Alert => Ok(()),
        Some(violation) => Err(Rejected {
            reason: Reason::PolicyViolation,
            message: violation.message.clone(),
            drains: violation.on_violation == OnViolation::Drain,
        }),
    }
}

/// Whether this spec was followed before, or makes the revision that was asked for last.
fn is_known(object: &LlmDeployment, revision: &Revision) -> bool {
    let Some(status) = &object.status else { return false };
    let accepted: &str = ConditionType::Accepted.into();
    let was_accepted = status.conditions.iter().any(|one| {
        one.type_ == accepted && one.status == "True" && one.observed_generation == object.metadata.generation
    });
    was_accepted || status.target_revision.as_deref() == Some(revision.as_str())
}

fn check_source(source: &str) -> Result<(), Rejected> {
    const SCHEMES: [&str; 4] = ["hf://", "oci://", "s3://", "https://"];
    let is_known = SCHEMES.iter().any(|scheme| source.starts_with(scheme));
    if is_known && !source.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Ok(());
    }
    Err(invalid(
        "spec.model.source must be hf://<owner>/<name>, oci://<registry>/<repository>@sha256:<digest>, s3://<bucket>/<prefix> or https://<host>/<path to a file>; other sources are not supported in this version"
            .to_owned(),
    ))
}

fn check_digest(digest: &str) -> Result<(), Rejected> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64
        && hex
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    {
        return Ok(());
    }
    Err(invalid(
        "spec.model.verification.digest must be 'sha256:' and 64 lower-case hexadecimal digits".to_owned(),
    ))
}

fn check_resources(resources: &Resources) -> Result<(), Rejected> {
    let Resources {
        gpu,
        cpu,
        memory,
        claims: _,
    } = resources;
    for (field, quantity) in [("cpu", cpu), ("memory", memory)] {
        if let Some(Quantity(text)) = quantity
            && !is_positive_quantity(text)
        {
            return Err(invalid(format!(
                "spec.resources.{field} must be a quantity above 0, for example {}; it is '{text}'",
                if field == "cpu" { "'4' or '500m'" } else { "'8Gi'" }
            )));
        }
    }
    if gpu.as_ref().is_some_and(|gpu| gpu.count > 1) {
        return Err(invalid("spec.resources.gpu.count must be 0 or 1".to_owned()));
    }
    Ok(())
}

fn check_access(access: Option<&Access>) -> Result<(), Rejected> {
    let limits = access.and_then(|access| access.limits).unwrap_or_default();
    for (field, limit) in [
        ("requestsPerMinute", limits.requests_per_minute),
        ("tokensPerMinute", limits.tokens_per_minute),
    ] {
        if let Some(limit) = limit.filter(|limit| *limit < 1) {
            return Err(invalid(format!(
                "spec.access.limits.{field} must be 1 or more, it is {limit}"
            )));
        }
    }
    Ok(())
}

/// Whether a text is a quantity of Kubernetes above zero: a decimal number and perhaps a suffix.
fn is_positive_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 15] = [
        "", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "u",
    ];
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let is_exponent = suffix
        .strip_prefix(['e', 'E'])
        .is_some_and(|power| power.parse::<i8>().is_ok());
    (SUFFIXES.contains(&suffix) || is_exponent) && number.parse::<f64>().is_ok_and(|value| value > 0.0)
}

/// The Service of our name, which must be ours: taking over somebody else's would redirect its traffic.
fn own_service(name: &str, observed: &Observed) -> Result<Option<Service>, Rejected> {
    match &observed.service {
        Some(found) if !found.is_ours => Err(invalid(format!(
            "a Service named {name} exists already and does not belong to this object; delete it, or give the LlmDeployment another name"
        ))),
        Some(found) => Ok(Some(found.service.clone())),
        None => Ok(None),
    }
}

fn sorted(files: Option<&[String]>) -> Option<Vec<String>> {
    let mut files = files?.to_vec();
    files.sort();
    files.dedup();
    (!files.is_empty()).then_some(files)
}

/// Resources without what has no effect, so that it makes no revision.
fn normal_resources(resources: &Resources) -> Option<Resources> {
    let normal = Resources {
        gpu: resources.gpu.clone().filter(|gpu| gpu.count > 0),
        claims: resources.claims.clone().filter(|claims| !claims.is_empty()),
        ..resources.clone()
    };
    (normal != Resources::default()).then_some(normal)
}

impl Valid {
    /// The pods, read.
    pub fn pods(&self, observed: &Observed) -> Vec<PodFacts> {
        let pods = observed.pods.iter();
        pods.map(|one| PodFacts::of(one, &self.name, &self.recorded, &self.diagnose(one)))
            .collect()
    }

    /// Reads one pod.
    pub fn diagnose(&self, one: &ObservedPod) -> Diagnosis {
        let name = one.pod.name_any();
        let revision = names::parse_pod_name(&self.name, &name).map(|(revision, _)| revision);
        let is_target = revision == Some(self.revision.as_str()) && !self.is_frozen;
        let digest = revision.and_then(|revision| self.recorded.get(revision)?.digest.as_deref());
        diagnose(one, if is_target { Some(&self.intent.digest) } else { digest })
    }

    /// Why the API server refused a pod in the pass before, in its words.
    pub fn refusal(&self) -> Option<String> {
        let reason: &str = Reason::PodRefused.into();
        let conditions = self.before.conditions.iter();
        let mut refused = conditions.filter(|one| one.reason == reason);
        refused.next().map(|one| one.message.clone())
    }

    /// Whether the API is served over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.intent.access.as_ref().is_some_and(|access| access.tls.is_some())
    }

    /// The labels of every child.
    pub fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (names::LABEL_MANAGED_BY.to_owned(), names::MANAGED_BY.to_owned()),
            (names::LABEL_DEPLOYMENT.to_owned(), self.name.clone()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{DIGEST, object, world};
    use super::super::observe::ObservedService;
    use super::*;
    use serde_json::json;

    #[test]
    fn valid_spec_gets_its_defaults() {
        let object = object(&json!({}));
        let valid = validate(&object, &world(vec![])).unwrap();
        assert_eq!(valid.intent.served_name, "support");
        assert_eq!(valid.image, "registry.example.com/runtime:7");
        assert_eq!(valid.replicas, 2);
        assert!(valid.recorded.is_empty());
        assert_eq!(valid.intent.digest, DIGEST);
    }

    #[test]
    fn suspended_object_wants_no_pods() {
        let valid = validate(&object(&json!({"suspend": true})), &world(vec![])).unwrap();
        assert_eq!(valid.replicas, 0);
        assert!(valid.suspended);
    }

    #[test]
    fn spec_that_the_schema_missed_is_rejected_by_name() {
        let cases = [
            (json!({"model": {"source": "ftp://x/y"}}), "spec.model.source"),
            (
                json!({"model": {"verification": {"digest": "sha256:12"}}}),
                "spec.model.verification.digest",
            ),
            (json!({"replicas": -1}), "spec.replicas"),
            (json!({"resources": {"memory": "lots"}}), "spec.resources.memory"),
            (json!({"resources": {"cpu": "0"}}), "spec.resources.cpu"),
            (json!({"resources": {"gpu": {"count": 2}}}), "spec.resources.gpu.count"),
            (json!({"drain": {"timeoutSeconds": -5}}), "spec.drain.timeoutSeconds"),
            (
                json!({"access": {"limits": {"tokensPerMinute": 0}}}),
                "spec.access.limits.tokensPerMinute",
            ),
        ];
        for (spec, field) in cases {
            let rejected = validate(&object(&spec), &world(vec![])).unwrap_err();
            assert_eq!(rejected.reason, Reason::InvalidSpec);
            assert!(rejected.message.contains(field), "{}", rejected.message);
        }
    }

    #[test]
    fn quantities_of_kubernetes_are_understood() {
        for text in ["1", "500m", "1.5", "8Gi", "1e3", "2E6", "12E", "100u"] {
            assert!(is_positive_quantity(text), "{text}");
        }
        for text in ["", "0", "-1", "1Q", "Gi", "1 Gi", "1.2.3", "0.0", "1ee3"] {
            assert!(!is_positive_quantity(text), "{text}");
        }
    }

    #[test]
    fn foreign_service_is_never_taken_over() {
        let mut observed = world(vec![]);
        observed.service = Some(ObservedService {
            service: Service::default(),
            is_ours: false,
        });
        let rejected = validate(&object(&json!({})), &observed).unwrap_err();
        assert!(rejected.message.contains("a Service named support exists already"));
    }

    #[test]
    fn edits_that_work_live_make_no_revision() {
        let base = validate(&object(&json!({})), &world(vec![])).unwrap();
        for spec in [
            json!({"replicas": 9}),
            json!({"suspend": true}),
            json!({"service": {"port": 81}}),
            json!({"drain": {"timeoutSeconds": 9}}),
            json!({"model": {"endpoint": "https://mirror"}}),
            json!({"placement": {}, "runtime": {}, "resources": {"gpu": {"count": 0}, "claims": []}}),
            json!({"model": {"secretRef": {"name": "hub"}, "format": "Auto"}}),
            json!({"disruption": {"minAvailable": 1, "safeToEvict": false}}),
            json!({"observability": {"podMonitor": "Disabled"}}),
            json!({"files": [], "podLabels": {}, "podAnnotations": {}, "network": {}, "podOverrides": {}}),
        ] {
            let edited = validate(&object(&spec), &world(vec![])).unwrap();
            assert_eq!(edited.revision, base.revision, "{spec}");
        }
        for spec in [
            json!({"model": {"revision": "v2"}}),
            json!({"model": {"files": ["a.gguf"]}}),
            json!({"placement": {"runtimeClassName": "nvidia"}}),
            json!({"resources": {"memory": "1Gi"}}),
            json!({"resources": {"claims": [{"name": "a", "resourceClaimTemplateName": "b"}]}}),
            json!({"model": {"format": "GGUF"}}),
            json!({"runtime": {"imagePullPolicy": "Never"}}),
            json!({"runtime": {"imagePullSecrets": [{"name": "a"}]}}),
            json!({"runtime": {"args": ["--threads=2"]}}),
            json!({"runtime": {"env": [{"name": "A", "value": "b"}]}}),
            json!({"files": [{"path": "chat_template.jinja", "inline": "x"}]}),
            json!({"serviceAccountName": "models"}),
            json!({"podLabels": {"a": "b"}}),
            json!({"podAnnotations": {"a": "b"}}),
            json!({"network": {"httpsProxy": "http://p"}}),
            json!({"podOverrides": {"spec": {"priority": 1}}}),
            json!({"access": {"apiKeysSecretRef": {"name": "keys"}}}),
            json!({"access": {"limits": {"requestsPerMinute": 5}}}),
            json!({"access": {"tls": {"secretRef": {"name": "certificate"}}}}),
        ] {
            let edited = validate(&object(&spec), &world(vec![])).unwrap();
            assert_ne!(edited.revision, base.revision, "{spec}");
        }
    }

    #[test]
    fn only_what_of_the_access_cannot_work_live_makes_a_revision() {
        let revision = |access: Value| {
            validate(&object(&json!({"access": access})), &world(vec![]))
                .unwrap()
                .revision
        };
        let keys = |name: &str| json!({"name": name});
        let base = json!({"apiKeysSecretRef": keys("a"), "limits": {"requestsPerMinute": 5}});
        let live = json!({"apiKeysSecretRef": keys("a"), "required": true, "limits": {"tokensPerMinute": 7}});
        assert_eq!(revision(live), revision(base.clone()));
        for other in [
            json!({"apiKeysSecretRef": keys("b"), "limits": {"requestsPerMinute": 5}}),
            json!({"apiKeysSecretRef": keys("a"), "required": false, "limits": {"requestsPerMinute": 5}}),
            json!({"apiKeysSecretRef": keys("a")}),
        ] {
            assert_ne!(revision(other.clone()), revision(base.clone()), "{other}");
        }
    }

    #[test]
    fn new_default_image_makes_no_revision() {
        let mut upgraded = world(vec![]);
        upgraded.defaults.runtime_image = "registry.example.com/runtime:8".to_owned();
        let before = validate(&object(&json!({})), &world(vec![])).unwrap();
        let after = validate(&object(&json!({})), &upgraded).unwrap();
        assert_eq!(before.revision, after.revision);
    }
}
