//! What a patch may do, and that the rest is refused with the field's path.

use super::super::super::fixtures::{object, valid, world};
use super::super::super::validate::validate;
use super::super::template;
use super::*;

fn patched(patch: &Value) -> Result<PodTemplateSpec, String> {
    let object = object(&json!({"podOverrides": patch}));
    validate(&object, &world(vec![]))
        .map(|valid| valid.template)
        .map_err(|rejected| rejected.message)
}

#[track_caller]
fn refused(patch: &Value, words: &[&str]) {
    let message = patched(patch).expect_err(&format!("accepted: {patch}"));
    for word in words {
        assert!(message.contains(word), "{patch}: `{word}` is not in: {message}");
    }
}

#[test]
fn patch_changes_what_it_names_and_nothing_else() {
    let plain = template(&valid(&object(&json!({})), &world(vec![]))).unwrap();
    let patch = json!({
        "metadata": {"labels": {"team": "search"}, "annotations": {"example.com/a": "b"}},
        "spec": {
            "priority": 7,
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
            "containers": [
                {"name": "runtime", "env": [{"name": "MODE", "value": "x"}],
                 "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                 "resources": {"limits": {"ephemeral-storage": "9Gi"}}},
                {"name": "logs", "image": "logs:1", "volumeMounts": [{"name": "models", "mountPath": "/m", "readOnly": true}]},
            ],
        },
    });
    let pod = patched(&patch).unwrap();
    let metadata = pod.metadata.unwrap();
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "search");
    assert_eq!(metadata.labels.as_ref().unwrap()[names::LABEL_MANAGED_BY], "escadre");
    assert_eq!(metadata.annotations.unwrap()["example.com/a"], "b");
    let (spec, before) = (pod.spec.unwrap(), plain.spec.unwrap());
    assert_eq!((spec.priority, spec.containers.len()), (Some(7), 2));
    let (runtime, was) = (&spec.containers[0], &before.containers[0]);
    assert_eq!((&runtime.image, &runtime.args), (&was.image, &was.args));
    assert_eq!(runtime.env.as_ref().unwrap().len(), was.env.as_ref().unwrap().len() + 1);
    assert_eq!(
        runtime.volume_mounts.as_ref().unwrap().len(),
        was.volume_mounts.as_ref().unwrap().len() + 1
    );
    assert_eq!(spec.volumes.unwrap().len(), before.volumes.unwrap().len() + 1);
    let logs = spec.containers[1].security_context.as_ref().unwrap();
    assert_eq!(logs.allow_privilege_escalation, Some(false));
}

#[test]
fn lists_without_a_key_are_replaced() {
    let patch = json!({"spec": {"tolerations": [{"key": "b", "operator": "Exists"}]}});
    let object = object(&json!({
        "placement": {"tolerations": [{"key": "a", "operator": "Exists"}]}, "podOverrides": patch,
    }));
    let tolerations = valid(&object, &world(vec![]))
        .template
        .spec
        .unwrap()
        .tolerations
        .unwrap();
    assert_eq!(tolerations.len(), 1);
    assert_eq!(tolerations[0].key.as_deref(), Some("b"));
}

#[test]
fn unknown_fields_are_named() {
    for (patch, path) in [
        (
            json!({"spec": {"tolerashuns": []}}),
            "spec.podOverrides.spec.tolerashuns",
        ),
        (
            json!({"spec": {"dnsPolice": "Default"}}),
            "spec.podOverrides.spec.dnsPolice",
        ),
        (
            json!({"spec": {"dnsConfig": {"namservers": ["1.1.1.1"]}}}),
            "spec.podOverrides.spec.dnsConfig.namservers",
        ),
        (
            json!({"spec": {"tolerations": [{"kee": "a"}]}}),
            "spec.podOverrides.spec.tolerations[0].kee",
        ),
        (
            json!({"spec": {"containers": [{"name": "logs", "image": "i", "comand": ["x"]}]}}),
            "spec.podOverrides.spec.containers[logs].comand",
        ),
        (
            json!({"spec": {"containers": [{"name": "runtime", "resources": {"limit": {"cpu": "1"}}}]}}),
            "spec.podOverrides.spec.containers[runtime].resources.limit",
        ),
    ] {
        refused(&patch, &[path, "is not a field of a pod"]);
    }
}

#[test]
fn value_of_the_wrong_form_is_named() {
    refused(
        &json!({"spec": {"priority": "high"}}),
        &["spec.podOverrides.spec.priority", "form"],
    );
    refused(&json!({"spec": []}), &["spec.podOverrides.spec", "must be an object"]);
    refused(&json!({"spec": {"containers": [{"image": "x"}]}}), &["has no name"]);
}

#[test]
fn power_over_nodes_and_accounts_is_refused() {
    let other = |field: Value| json!({"spec": {"containers": [{"name": "x", "image": "i", "securityContext": field}]}});
    let own = |field: Value| json!({"spec": {"containers": [{"name": "runtime", "securityContext": field}]}});
    for (patch, path) in [
        (json!({"spec": {"hostNetwork": true}}), "spec.hostNetwork"),
        (json!({"spec": {"hostPID": true}}), "spec.hostPID"),
        (json!({"spec": {"hostIPC": true}}), "spec.hostIPC"),
        (
            json!({"spec": {"shareProcessNamespace": true}}),
            "spec.shareProcessNamespace",
        ),
        (
            json!({"spec": {"automountServiceAccountToken": true}}),
            "spec.automountServiceAccountToken",
        ),
        (
            json!({"spec": {"serviceAccountName": "root"}}),
            "spec.serviceAccountName",
        ),
        (json!({"spec": {"serviceAccount": "root"}}), "spec.serviceAccount"),
        (json!({"spec": {"nodeName": "n"}}), "spec.nodeName"),
        (
            json!({"spec": {"securityContext": {"sysctls": []}}}),
            "spec.securityContext.sysctls",
        ),
        (
            json!({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
            "spec.securityContext.seccompProfile",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
            "spec.volumes[v].hostPath",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}),
            "spec.volumes[v].projected.sources[].serviceAccountToken",
        ),
        (
            other(json!({"privileged": true})),
            "containers[x].securityContext.privileged",
        ),
        (
            other(json!({"allowPrivilegeEscalation": true})),
            "containers[x].securityContext.allowPrivilegeEscalation",
        ),
        (
            other(json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
            "containers[x].securityContext.capabilities.add",
        ),
        (
            other(json!({"procMount": "Unmasked"})),
            "containers[x].securityContext.procMount",
        ),
        (
            own(json!({"privileged": true})),
            "containers[runtime].securityContext.privileged",
        ),
        (
            own(json!({"capabilities": {"drop": []}})),
            "containers[runtime].securityContext.capabilities",
        ),
        (
            own(json!({"readOnlyRootFilesystem": false})),
            "containers[runtime].securityContext.readOnlyRootFilesystem",
        ),
        (
            json!({"spec": {"containers": [{"name": "x", "image": "i", "ports": [{"containerPort": 1, "hostPort": 1}]}]}}),
            "containers[x].ports[].hostPort",
        ),
    ] {
        refused(&patch, &["spec.podOverrides.", path, "is refused"]);
    }
}

#[test]
fn what_verifies_the_model_is_out_of_reach() {
    let own = |field: &str, value: Value| json!({"spec": {"containers": [{"name": "runtime", field: value}]}});
    for (patch, path) in [
        (own("image", json!("evil")), "containers[runtime].image"),
        (own("command", json!(["sh"])), "containers[runtime].command"),
        (own("args", json!(["serve"])), "containers[runtime].args"),
        (own("envFrom", json!([])), "containers[runtime].envFrom"),
        (own("lifecycle", json!({})), "containers[runtime].lifecycle"),
        (own("readinessProbe", json!({})), "containers[runtime].readinessProbe"),
        (
            own("env", json!([{"name": "LD_PRELOAD", "value": "/mnt/x.so"}])),
            "env[LD_PRELOAD]",
        ),
        (
            own("env", json!([{"name": "ESCADRE_POD_UID", "value": "x"}])),
            "env[ESCADRE_POD_UID]",
        ),
        (own("env", json!([{"name": "HF_TOKEN", "value": "x"}])), "env[HF_TOKEN]"),
        (
            own("volumeMounts", json!([{"name": "v", "mountPath": "/models/sha256"}])),
            "volumeMounts[/models/sha256]",
        ),
        (
            own("volumeMounts", json!([{"name": "v", "mountPath": "/usr/local/bin"}])),
            "volumeMounts[/usr/local/bin]",
        ),
        (
            own("volumeMounts", json!([{"name": "v", "mountPath": "/mnt/../usr"}])),
            "volumeMounts[/mnt/../usr]",
        ),
        (
            own("volumeMounts", json!([{"name": "models", "mountPath": "/mnt/m"}])),
            "volumeMounts[/mnt/m].name",
        ),
        (
            json!({"spec": {"volumes": [{"name": "models", "emptyDir": {}}]}}),
            "volumes[models]",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "fetch", "image": "evil"}]}}),
            "initContainers[fetch].image",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "fetch", "env": [{"name": "https_proxy", "value": "http://p"}]}]}}),
            "initContainers[fetch].env[https_proxy]",
        ),
        (
            json!({"spec": {"containers": [{"name": "x", "image": "i", "volumeMounts": [{"name": "models", "mountPath": "/m"}]}]}}),
            "containers[x].volumeMounts[/m]",
        ),
        (json!({"metadata": {"name": "x"}}), "metadata.name"),
        (json!({"metadata": {"ownerReferences": []}}), "metadata.ownerReferences"),
        (
            json!({"metadata": {"labels": {"escadre.dev/slot": "9"}}}),
            "metadata.labels[escadre.dev/slot]",
        ),
        (json!({"status": {}}), "spec.podOverrides.status"),
        (json!({"spec": {"containers": null}}), "spec.containers"),
        (json!({"spec": {"$patch": "replace"}}), "spec.$patch"),
    ] {
        refused(&patch, &["spec.podOverrides.", path, "is refused"]);
    }
}
