//! The pods: an init container that brings the model in, a container that serves it, nothing that either could
//! misuse. The template is built once for a revision and recorded; a pod is the template and a slot.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_crds::v1alpha1::{CaBundleRef, ModelFormat, Placement, Tracing};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector, Pod, PodResourceClaim,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceClaim, ResourceRequirements, SeccompProfile,
    SecretEnvSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::revision::json;
use super::super::validate::Valid;
use super::{access, files, live};

/// The user and group of our images.
const USER: i64 = 65532;
/// Seconds that a pod keeps accepting after it was told to end, until every node has heard that it left the Service.
const ENDPOINT_DELAY: u32 = 5;
/// The file of the certificates in their volume.
const CA_FILE: &str = "ca.crt";
/// Seconds between the end of draining and the moment when the kubelet kills.
const MARGIN: u32 = 10;

/// A pod of a revision's recorded template in one slot.
pub(super) fn build_pod(valid: &Valid, revision: &str, template: &PodTemplateSpec, slot: u32) -> Pod {
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = Some(names::pod_name(&valid.name, revision, slot));
    metadata.namespace = Some(valid.namespace.clone());
    metadata.owner_references = Some(vec![valid.owner.clone()]);
    let labels = names::pod_labels(&valid.name, revision, slot);
    metadata.labels.get_or_insert_default().extend(labels);
    let live = live::annotations(valid).into_iter();
    let live = live.map(|(key, value)| (key.to_owned(), value));
    metadata.annotations.get_or_insert_default().extend(live);
    Pod {
        metadata,
        spec: template.spec.clone(),
        status: None,
    }
}

/// The template of a new revision.
pub(super) fn build_template(valid: &Valid) -> PodTemplateSpec {
    let mut labels = valid.intent.pod_labels.clone().unwrap_or_default();
    labels.extend(valid.labels());
    labels.insert(names::LABEL_COMPONENT.to_owned(), names::COMPONENT_RUNTIME.to_owned());
    labels.insert(names::LABEL_REVISION.to_owned(), valid.revision.to_string());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: valid.intent.pod_annotations.clone(),
            ..ObjectMeta::default()
        }),
        spec: Some(build_spec(valid)),
    }
}

fn build_spec(valid: &Valid) -> PodSpec {
    let placement = valid.intent.placement.clone().unwrap_or_default();
    let Placement {
        node_selector,
        tolerations,
        affinity,
        topology_spread,
        priority_class_name,
        scheduler_name,
        runtime_class_name,
    } = placement;
    let grace = ENDPOINT_DELAY + valid.settings.drain_seconds + MARGIN;
    PodSpec {
        init_containers: Some(vec![build_fetch(valid)]),
        containers: vec![build_runtime(valid)],
        volumes: Some(build_volumes(valid)),
        service_account_name: valid.intent.service_account_name.clone(),
        image_pull_secrets: build_pull_secrets(valid),
        resource_claims: build_claims(valid),
        restart_policy: Some("Always".to_owned()),
        termination_grace_period_seconds: Some(i64::from(grace)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints: topology_spread,
        priority_class_name,
        scheduler_name,
        runtime_class_name,
        ..PodSpec::default()
    }
}

fn build_volumes(valid: &Valid) -> Vec<Volume> {
    let mut volumes = vec![scratch(names::VOLUME_MODELS), scratch(names::VOLUME_TMP)];
    if !valid.files.is_empty() {
        volumes.push(files::volume(valid));
    }
    volumes.extend(valid.intent.access.iter().flat_map(access::volumes));
    volumes.extend(ca_bundle(valid).map(|reference| Volume {
        name: names::VOLUME_CA.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: reference.name.clone(),
            items: Some(vec![KeyToPath {
                key: reference.key.clone(),
                path: CA_FILE.to_owned(),
                mode: None,
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }));
    volumes
}

fn ca_bundle(valid: &Valid) -> Option<&CaBundleRef> {
    valid.intent.network.as_ref()?.ca_bundle_ref.as_ref()
}

fn build_pull_secrets(valid: &Valid) -> Option<Vec<LocalObjectReference>> {
    let secrets = valid.intent.runtime.as_ref()?.image_pull_secrets.as_ref()?;
    let references = secrets.iter().map(|secret| LocalObjectReference {
        name: secret.name.clone(),
    });
    Some(references.collect())
}

fn build_claims(valid: &Valid) -> Option<Vec<PodResourceClaim>> {
    let claims = valid.intent.resources.as_ref()?.claims.as_ref()?;
    let claims = claims.iter().map(|claim| PodResourceClaim {
        name: claim.name.clone(),
        resource_claim_name: None,
        resource_claim_template_name: Some(claim.resource_claim_template_name.clone()),
    });
    Some(claims.collect())
}

/// The word of the runtime for a format.
fn format_argument(valid: &Valid) -> Option<String> {
    let name = match valid.intent.format? {
        ModelFormat::Auto => return None,
        ModelFormat::Safetensors => "safetensors",
        ModelFormat::Gguf => "gguf",
    };
    Some(format!("--format={name}"))
}

fn build_fetch(valid: &Valid) -> Container {
    let intent = &valid.intent;
    let mut args = vec!["fetch".to_owned(), format!("--source={}", intent.source)];
    args.extend(intent.revision.iter().map(|revision| format!("--revision={revision}")));
    args.extend(
        valid
            .settings
            .endpoint
            .iter()
            .map(|endpoint| format!("--endpoint={endpoint}")),
    );
    args.extend(intent.files.iter().flatten().map(|glob| format!("--file={glob}")));
    args.push(format!("--digest={}", intent.digest));
    args.push(format!("--store={}", names::PATH_MODELS));
    args.extend(format_argument(valid));
    let mut container = base(valid);
    let env = container.env.get_or_insert_default();
    let network = intent.network.as_ref();
    env.extend(network.and_then(|network| literal("HTTPS_PROXY", network.https_proxy.as_ref())));
    env.extend(network.and_then(|network| literal("NO_PROXY", network.no_proxy.as_ref())));
    if ca_bundle(valid).is_some() {
        args.push(format!("--ca-bundle={}/{CA_FILE}", names::PATH_CA));
        let mount = read_only(names::VOLUME_CA, names::PATH_CA);
        container.volume_mounts.get_or_insert_default().push(mount);
    }
    if let Some(secret) = &valid.settings.secret {
        args.push("--credentials".to_owned());
        // Not optional: while the Secret is missing the kubelet waits for it, and says so.
        container.env_from = Some(vec![EnvFromSource {
            prefix: Some(names::ENV_SECRET_PREFIX.to_owned()),
            secret_ref: Some(SecretEnvSource {
                name: secret.clone(),
                optional: Some(false),
            }),
            config_map_ref: None,
        }]);
    }
    Container {
        name: names::CONTAINER_FETCH.to_owned(),
        args: Some(args),
        resources: build_resources(valid, false),
        ..container
    }
}

fn build_runtime(valid: &Valid) -> Container {
    let intent = &valid.intent;
    let mut args = vec![
        "serve".to_owned(),
        format!("--store={}", names::PATH_MODELS),
        format!("--digest={}", intent.digest),
        format!("--served-name={}", intent.served_name),
    ];
    if let Some(requirements) = &intent.requirements {
        args.push(format!("--requirements={}", json(requirements)));
    }
    if let Some(runtime) = &intent.runtime {
        args.extend(runtime.max_context.map(|tokens| format!("--max-context={tokens}")));
        args.extend(
            runtime
                .max_concurrency
                .map(|requests| format!("--max-concurrency={requests}")),
        );
    }
    args.push(format!("--endpoint-delay={ENDPOINT_DELAY}s"));
    args.push(format!("--drain-timeout={}s", valid.settings.drain_seconds));
    if let Some(Tracing { endpoint, sampling }) = &valid.settings.tracing {
        args.push(format!("--otlp-endpoint={endpoint}"));
        args.push(format!("--trace-sampling={sampling}"));
    }
    args.extend(format_argument(valid));
    // Never on the processor instead: that would be slow, and called ready.
    if intent
        .resources
        .as_ref()
        .is_some_and(|resources| resources.gpu.is_some())
    {
        args.push("--device=cuda".to_owned());
    }
    let mut container = base(valid);
    if !valid.files.is_empty() {
        args.push(format!("--overlay={}", names::PATH_OVERLAY));
        let mount = read_only(names::VOLUME_OVERLAY, names::PATH_OVERLAY);
        container.volume_mounts.get_or_insert_default().push(mount);
    }
    if let Some(access) = &intent.access {
        args.extend(access::arguments(access));
        let mounts = access::mounts(access);
        container.volume_mounts.get_or_insert_default().extend(mounts);
    }
    if let Some(runtime) = &intent.runtime {
        args.extend(runtime.args.iter().flatten().cloned());
        let env = runtime.env.iter().flatten().map(|one| EnvVar {
            name: one.name.clone(),
            value: one.value.clone(),
            value_from: one.value_from.clone(),
        });
        container.env.get_or_insert_default().extend(env);
    }
    Container {
        name: names::CONTAINER_RUNTIME.to_owned(),
        args: Some(args),
        ports: Some(vec![
            port(names::PORT_HTTP, names::PORT_HTTP_NUMBER),
            port(names::PORT_ADMIN, names::PORT_ADMIN_NUMBER),
        ]),
        readiness_probe: Some(Probe {
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            ..probe("/readyz")
        }),
        // No startup probe: the page answers while the model loads, and a load that makes progress is never killed.
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(6),
            ..probe("/livez")
        }),
        resources: build_resources(valid, true),
        ..container
    }
}

/// What both containers have in common.
fn base(valid: &Valid) -> Container {
    Container {
        image: Some(valid.image.clone()),
        image_pull_policy: Some(valid.pull_policy.to_owned()),
        env: Some(vec![
            from_field(names::ENV_POD_UID, "metadata.uid"),
            from_field(names::ENV_POD_NAME, "metadata.name"),
            EnvVar {
                name: names::ENV_REVISION.to_owned(),
                value: Some(valid.revision.to_string()),
                value_from: None,
            },
        ]),
        volume_mounts: Some(vec![
            mount(names::VOLUME_MODELS, names::PATH_MODELS),
            mount(names::VOLUME_TMP, names::PATH_TMP),
        ]),
        // Where a process leaves no last word, the end of its log is shown.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities {
                add: None,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// Request and limit are the same, so that what was asked for is what there is. The init container gets no device.
fn build_resources(valid: &Valid, with_gpu: bool) -> Option<ResourceRequirements> {
    let resources = valid.intent.resources.as_ref()?;
    let mut amounts: BTreeMap<String, Quantity> = BTreeMap::new();
    amounts.extend(resources.cpu.clone().map(|cpu| ("cpu".to_owned(), cpu)));
    amounts.extend(resources.memory.clone().map(|memory| ("memory".to_owned(), memory)));
    if with_gpu && let Some(gpu) = &resources.gpu {
        amounts.insert(gpu.resource_name.clone(), Quantity(gpu.count.to_string()));
    }
    let claims = resources.claims.as_ref().filter(|_| with_gpu).map(|claims| {
        let claims = claims.iter().map(|claim| ResourceClaim {
            name: claim.name.clone(),
            request: None,
        });
        claims.collect()
    });
    if amounts.is_empty() && claims.is_none() {
        return None;
    }
    let amounts = (!amounts.is_empty()).then_some(amounts);
    Some(ResourceRequirements {
        requests: amounts.clone(),
        limits: amounts,
        claims,
    })
}

fn scratch(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(name, path)
    }
}

fn literal(name: &str, value: Option<&String>) -> Option<EnvVar> {
    Some(EnvVar {
        name: name.to_owned(),
        value: Some(value?.clone()),
        value_from: None,
    })
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(names::PORT_ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}
