//! The pods: an init container that brings the model in, a container that serves it, nothing that either could
//! misuse. The template is built once for a revision and recorded; a pod is the template and a slot.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_crds::v1alpha1::Placement;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::Valid;

/// The user and group of our images.
const USER: i64 = 65532;
/// Seconds that a pod keeps accepting after it was told to end, until every node has heard that it left the Service.
const ENDPOINT_DELAY: u32 = 5;
/// Seconds between the end of draining and the moment when the kubelet kills.
const MARGIN: u32 = 10;

/// A pod of the recorded template in one slot.
pub(super) fn build_pod(valid: &Valid, template: &PodTemplateSpec, slot: u32) -> Pod {
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = Some(names::pod_name(&valid.name, valid.revision.as_str(), slot));
    metadata.namespace = Some(valid.namespace.clone());
    metadata.owner_references = Some(vec![valid.owner.clone()]);
    let labels = names::pod_labels(&valid.name, valid.revision.as_str(), slot);
    metadata.labels.get_or_insert_default().extend(labels);
    Pod {
        metadata,
        spec: template.spec.clone(),
        status: None,
    }
}

/// The template of a new revision.
pub(super) fn build_template(valid: &Valid) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: None,
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
        volumes: Some(vec![scratch(names::VOLUME_MODELS), scratch(names::VOLUME_TMP)]),
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
    Container {
        name: names::CONTAINER_FETCH.to_owned(),
        args: Some(args),
        resources: build_resources(valid, false),
        ..base(valid)
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
        ..base(valid)
    }
}

/// What both containers have in common.
fn base(valid: &Valid) -> Container {
    Container {
        image: Some(valid.image.clone()),
        image_pull_policy: Some(<&str>::from(valid.pull_policy).to_owned()),
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
    if amounts.is_empty() {
        return None;
    }
    Some(ResourceRequirements {
        requests: Some(amounts.clone()),
        limits: Some(amounts),
        claims: None,
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
