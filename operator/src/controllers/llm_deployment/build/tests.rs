//! What is built: every argument of the pods, their security, the record, and a Service that is written only once.

use super::super::fixtures::{DIGEST, PodFixture, at, object, valid, watched, world};
use super::super::observe::ObservedService;
use super::super::plan;
use super::*;
use escadre_crds::{LlmDeployment, names};
use kube::ResourceExt as _;
use kube::core::PartialObjectMetaExt as _;
use serde_json::{Value, json};
use std::sync::Arc;

fn first_pass(object: &LlmDeployment) -> (Valid, Children<Built>) {
    let observed = world(vec![]);
    let valid = valid(object, &observed);
    let plan = plan::next(&valid, &observed, None, at(0));
    let children = build(&valid, &plan);
    (valid, children)
}

fn rich() -> LlmDeployment {
    object(&json!({
        "model": {"revision": "v3", "endpoint": "https://mirror.example.com", "files": ["b.json", "a.gguf"], "servedName": "served-7b"},
        "runtime": {"maxContext": 1234, "maxConcurrency": 7},
        "resources": {"gpu": {"count": 1, "resourceName": "example.com/gpu"}, "cpu": "3", "memory": "5Gi"},
        "placement": {"nodeSelector": {"zone": "z1"}, "runtimeClassName": "nv", "priorityClassName": "high", "schedulerName": "other",
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "topologySpread": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]},
        "drain": {"timeoutSeconds": 33},
        "observability": {"tracing": {"endpoint": "http://collector:4318", "sampling": 0.25}},
        "service": {"type": "NodePort", "port": 8000, "annotations": {"example.com/a": "b"}},
    }))
}

#[test]
fn pod_has_the_command_lines_of_the_runtime() {
    let (valid, children) = first_pass(&rich());
    let pod = &children.pods[1];
    assert_eq!(pod.name_any(), format!("support-{}-1", valid.revision));
    let spec = pod.spec.as_ref().unwrap();
    let fetch = &spec.init_containers.as_ref().unwrap()[0];
    let digest = format!("--digest={DIGEST}");
    assert_eq!(
        fetch.args.as_ref().unwrap(),
        &[
            "fetch",
            "--source=hf://owner/name",
            "--revision=v3",
            "--endpoint=https://mirror.example.com",
            "--file=a.gguf",
            "--file=b.json",
            &digest,
            "--store=/models",
        ]
    );
    assert_eq!(
        spec.containers[0].args.as_ref().unwrap(),
        &[
            "serve",
            "--store=/models",
            &digest,
            "--served-name=served-7b",
            "--max-context=1234",
            "--max-concurrency=7",
            "--endpoint-delay=5s",
            "--drain-timeout=33s",
            "--otlp-endpoint=http://collector:4318",
            "--trace-sampling=0.25",
            "--device=cuda",
        ]
    );
    assert_eq!(spec.termination_grace_period_seconds, Some(5 + 33 + 10));
}

#[test]
fn bucket_and_registry_reach_the_container_that_fetches_with_every_key_of_their_secret() {
    for (source, endpoint) in [
        ("s3://models/tiny", Some("http://minio.storage.svc:9000")),
        ("oci://ghcr.io/team/tiny:v1", None),
    ] {
        let mut wanted = object(&json!({"model": {"secretRef": {"name": "credentials"}}}));
        wanted.spec.model.source = source.into();
        wanted.spec.model.endpoint = endpoint.map(str::to_owned);
        let (_, children) = first_pass(&wanted);
        let spec = children.pods[0].spec.as_ref().unwrap();
        let fetch = &spec.init_containers.as_ref().unwrap()[0];
        let has = |argument: String| fetch.args.iter().flatten().any(|given| *given == argument);
        assert!(has(format!("--source={source}")) && has("--credentials".to_owned()));
        assert!(endpoint.is_none_or(|endpoint| has(format!("--endpoint={endpoint}"))));
        // Under names that the runtime reads: `.dockerconfigjson` and `accessKeyId` are keys like any other.
        let env = &fetch.env_from.as_ref().unwrap()[0];
        assert_eq!(env.prefix.as_deref(), Some(names::ENV_SECRET_PREFIX));
        assert_eq!(env.secret_ref.as_ref().unwrap().name, "credentials");
        assert_eq!(spec.containers[0].env_from, None);
    }
}

#[test]
fn access_is_mounted_and_its_limits_are_annotations() {
    let asked = object(&json!({"access": {
        "apiKeysSecretRef": {"name": "keys"}, "required": false,
        "limits": {"requestsPerMinute": 60}, "tls": {"secretRef": {"name": "certificate"}},
    }}));
    let (_, children) = first_pass(&asked);
    let pod = &children.pods[0];
    let spec = pod.spec.as_ref().unwrap();
    let args = spec.containers[0].args.as_ref().unwrap();
    for argument in [
        "--api-keys=/access/keys",
        "--require-key=false",
        "--limits=/access/limits",
        "--tls=/access/tls",
    ] {
        assert!(args.iter().any(|one| one == argument), "{argument} in {args:?}");
    }
    let volumes = spec.volumes.as_ref().unwrap();
    let secret = |name: &str| {
        let volume = volumes.iter().find(|volume| volume.name == name).unwrap();
        let secret = volume.secret.as_ref().unwrap();
        (secret.secret_name.clone().unwrap(), secret.optional)
    };
    assert_eq!(secret("api-keys"), ("keys".to_owned(), Some(true)));
    assert_eq!(secret("tls"), ("certificate".to_owned(), Some(true)));
    let annotations = pod.annotations();
    assert_eq!(annotations["escadre.dev/requests-per-minute"], "60");
    assert_eq!(annotations["escadre.dev/tokens-per-minute"], "");
    let service = children.service.unwrap().spec.unwrap();
    assert_eq!(service.ports.unwrap()[0].app_protocol.as_deref(), Some("https"));
    let fetch = &spec.init_containers.as_ref().unwrap()[0];
    let mounts = fetch.volume_mounts.iter().flatten();
    assert!(mounts.into_iter().all(|mount| !mount.mount_path.starts_with("/access")));
}

#[test]
fn other_limits_are_told_to_pods_that_run() {
    let asked = |limits: Value| object(&json!({"access": {"limits": limits}}));
    let there = json!({
        names::ANNOTATION_SAFE_TO_EVICT: "true",
        names::ANNOTATION_REQUESTS_PER_MINUTE: "60", names::ANNOTATION_TOKENS_PER_MINUTE: "",
    });
    let told = |object: &LlmDeployment| {
        let pod = PodFixture::new(object, 0).serving();
        let observed = world(vec![pod.set("metadata.annotations", there.clone()).done()]);
        let valid = valid(object, &observed);
        let plan = plan::next(&valid, &observed, None, at(0));
        let told = build(&valid, &plan).surroundings.annotate.into_iter();
        told.map(|one| (one.key, one.value)).collect::<Vec<_>>()
    };
    assert_eq!(told(&asked(json!({"requestsPerMinute": 60}))), []);
    assert_eq!(
        told(&asked(json!({"tokensPerMinute": 9}))),
        [
            (names::ANNOTATION_REQUESTS_PER_MINUTE, String::new()),
            (names::ANNOTATION_TOKENS_PER_MINUTE, "9".to_owned()),
        ]
    );
}

#[test]
fn pod_can_do_nothing_but_serve() {
    let (_, children) = first_pass(&rich());
    let spec = children.pods[0].spec.as_ref().unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.enable_service_links, Some(false));
    let pod = spec.security_context.as_ref().unwrap();
    assert_eq!(
        (pod.run_as_non_root, pod.run_as_user, pod.fs_group),
        (Some(true), Some(65532), Some(65532))
    );
    assert_eq!(pod.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(
            security.capabilities.as_ref().unwrap().drop.as_deref(),
            Some(&["ALL".to_owned()][..])
        );
        let env: Vec<&str> = container.env.iter().flatten().map(|one| one.name.as_str()).collect();
        assert_eq!(env, ["ESCADRE_POD_UID", "ESCADRE_POD_NAME", "ESCADRE_REVISION"]);
        assert_eq!(container.image.as_deref(), Some("registry.example.com/runtime:7"));
        assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
    }
}

#[test]
fn device_is_for_the_runtime_only_and_request_is_limit() {
    let (_, children) = first_pass(&rich());
    let spec = children.pods[0].spec.as_ref().unwrap();
    let runtime = spec.containers[0].resources.as_ref().unwrap();
    assert_eq!(runtime.requests, runtime.limits);
    let limits = runtime.limits.as_ref().unwrap();
    assert_eq!(
        (
            limits["example.com/gpu"].0.as_str(),
            limits["cpu"].0.as_str(),
            limits["memory"].0.as_str()
        ),
        ("1", "3", "5Gi")
    );
    let fetch = spec.init_containers.as_ref().unwrap()[0].resources.as_ref().unwrap();
    assert!(!fetch.limits.as_ref().unwrap().contains_key("example.com/gpu"));
}

#[test]
fn placement_reaches_the_pod() {
    let (_, children) = first_pass(&rich());
    let spec = children.pods[0].spec.as_ref().unwrap();
    assert_eq!(spec.node_selector.as_ref().unwrap()["zone"], "z1");
    assert_eq!(spec.runtime_class_name.as_deref(), Some("nv"));
    assert_eq!(spec.priority_class_name.as_deref(), Some("high"));
    assert_eq!(spec.scheduler_name.as_deref(), Some("other"));
    assert_eq!(spec.tolerations.as_ref().unwrap().len(), 1);
    assert_eq!(spec.topology_spread_constraints.as_ref().unwrap().len(), 1);
}

#[test]
fn minimal_object_sets_no_resources_and_no_options() {
    let (_, children) = first_pass(&object(&json!({})));
    let spec = children.pods[0].spec.as_ref().unwrap();
    assert_eq!(spec.containers[0].resources, None);
    assert_eq!(
        spec.containers[0].args.as_ref().unwrap()[3..],
        ["--served-name=support", "--endpoint-delay=5s", "--drain-timeout=120s"]
    );
}

#[test]
fn service_selects_what_pods_carry() {
    let (_, children) = first_pass(&rich());
    let service = children.service.unwrap();
    assert_eq!(service.name_any(), "support");
    let spec = service.spec.unwrap();
    let labels = children.pods[0].labels();
    assert!(
        spec.selector
            .unwrap()
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    );
    let selector = names::selector("support");
    assert!(
        selector
            .split(',')
            .all(|pair| pair.split_once('=').is_some_and(|(key, value)| labels[key] == value))
    );
    let port = &spec.ports.unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), 8000));
    assert_eq!(spec.type_.as_deref(), Some("NodePort"));
}

#[test]
fn service_that_is_as_wanted_is_not_written_again() {
    let object = rich();
    let (_, children) = first_pass(&object);
    let mut there = children.service.unwrap();
    // What an API server adds.
    there.spec.as_mut().unwrap().cluster_ip = Some("10.1.2.3".to_owned());
    there.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].node_port = Some(30123);
    there
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert("somebody.else/x".to_owned(), "y".to_owned());
    let write = |there: &Service, object: &LlmDeployment| {
        let mut observed = world(vec![]);
        observed.service = Some(ObservedService {
            service: there.clone(),
            is_ours: true,
        });
        build(&valid(object, &observed), &Plan::default()).service
    };
    assert_eq!(write(&there, &object), None);

    let mut drifted = there.clone();
    drifted
        .spec
        .as_mut()
        .unwrap()
        .selector
        .as_mut()
        .unwrap()
        .insert("one".to_owned(), "more".to_owned());
    assert!(write(&drifted, &object).is_some(), "drift is healed");

    let mut without = object.clone();
    without.spec.service.annotations = None;
    assert!(write(&there, &without).is_some(), "a removed annotation is taken back");
}

#[test]
fn pods_of_a_recorded_revision_come_from_the_record() {
    let object = rich();
    let (_, children) = first_pass(&object);
    let mut record = children.record.unwrap();
    record.metadata.uid = Some("record-uid".to_owned());
    assert_eq!(record.revision, 1);

    // The operator is upgraded, the mirror and the tracing edited, after the revision served.
    let mut edited = object.clone();
    edited.spec.model.endpoint = Some("https://other.example.com".to_owned());
    edited.spec.observability.tracing = None;
    let mut observed = world(vec![]);
    observed.defaults.runtime_image = "registry.example.com/runtime:8".to_owned();
    observed.revisions = vec![watched(&record)];
    let mut valid = valid(&edited, &observed);
    valid.before.current_revision = Some(valid.revision.to_string());
    valid
        .records
        .insert(valid.revision.to_string(), Record::of(&record).unwrap());
    let plan = plan::next(&valid, &observed, None, at(9));
    let again = build(&valid, &plan);
    assert!(again.record.is_none());
    assert_eq!(again.pods, children.pods);
}

#[test]
fn wrong_mirror_of_a_revision_that_never_served_can_be_repaired() {
    let object = rich();
    let (_, children) = first_pass(&object);
    let mut observed = world(vec![]);
    observed.revisions = children.record.iter().map(watched).collect();
    let mut edited = object;
    edited.spec.model.endpoint = Some("https://other.example.com".to_owned());
    let valid = valid(&edited, &observed);
    assert!(valid.recorded.contains_key(valid.revision.as_str()));
    let again = build(&valid, &plan::next(&valid, &observed, None, at(9)));
    assert_eq!(again.delete_records.len(), 1);
    assert!(again.pods.is_empty());
}

#[test]
fn edited_tracing_makes_no_other_revision_but_other_settings() {
    let (before, _) = first_pass(&rich());
    let mut edited = rich();
    edited.spec.observability.tracing = None;
    let (after, _) = first_pass(&edited);
    assert_eq!(after.revision, before.revision);
    assert_ne!(after.settings.fingerprint(), before.settings.fingerprint());
}

#[test]
fn surroundings_that_are_as_wanted_are_not_written_again() {
    let object = surrounded();
    let mut observed = world(vec![]);
    observed.dependencies.has_pod_monitors = true;
    let before = valid(&object, &observed);
    let children = build(&before, &plan::next(&before, &observed, None, at(0)));
    let Surroundings {
        files, budget, monitor, ..
    } = children.surroundings;
    let name = files[0].name_any();
    observed.revisions = children.record.iter().map(watched).collect();
    let files = Found {
        object: Arc::new(files[0].metadata.clone().into_response_partial()),
        is_ours: true,
    };
    observed.dependencies.snapshots.insert(name, files);
    observed.dependencies.budget = budget.map(found);
    observed.dependencies.pod_monitor = monitor.map(found);
    let after = build(&valid(&object, &observed), &Plan::default()).surroundings;
    assert_eq!((after.files, after.budget), (vec![], None));
    assert!(after.monitor.is_none() && after.annotate.is_empty());
    assert_eq!((after.delete_budget, after.delete_monitor), (None, None));

    let plain = build(&valid(&self::object(&json!({})), &observed), &Plan::default()).surroundings;
    assert!(plain.delete_budget.is_some(), "a budget that nobody wants goes");
    observed.dependencies.pod_monitor.as_mut().unwrap().is_ours = false;
    observed.dependencies.budget.as_mut().unwrap().is_ours = false;
    let plain = build(&valid(&self::object(&json!({})), &observed), &Plan::default()).surroundings;
    assert_eq!((plain.delete_budget, plain.delete_monitor), (None, None));
    assert!(plain.monitor.is_none(), "a foreign monitor is left alone");
}

fn found<K>(object: K) -> Found<K> {
    Found {
        object: Arc::new(object),
        is_ours: true,
    }
}

fn surrounded() -> LlmDeployment {
    object(&json!({
        "files": [{"path": "chat_template.jinja", "inline": "x"}],
        "disruption": {"minAvailable": "51%"},
    }))
}

#[test]
fn percentages_are_rounded_up_to_pods() {
    let of = |value: serde_json::Value, replicas| {
        let object = object(&json!({"disruption": {"minAvailable": value}}));
        disruption::min_available(&object.spec.disruption, replicas)
    };
    assert_eq!(of(json!("50%"), 3), Some(2));
    assert_eq!(of(json!("1%"), 3), Some(1));
    assert_eq!(of(json!("100%"), 0), Some(0));
    assert_eq!(of(json!(2), 9), Some(2));
    assert_eq!(of(json!("3"), 9), Some(3));
}

#[test]
fn every_child_has_our_owner_and_label() {
    let mut observed = world(vec![]);
    observed.dependencies.has_pod_monitors = true;
    let valid = valid(&surrounded(), &observed);
    let surroundings = build(&valid, &plan::next(&valid, &observed, None, at(0))).surroundings;
    let around = [
        surroundings.files.into_iter().next().map(|one| one.metadata),
        surroundings.budget.map(|one| one.metadata),
        surroundings.monitor.map(|one| one.metadata),
    ];
    let around: Vec<_> = around.into_iter().map(Option::unwrap).collect();
    let (_, children) = first_pass(&rich());
    let metas = children
        .pods
        .iter()
        .map(|pod| &pod.metadata)
        .chain(children.record.as_ref().map(|one| &one.metadata));
    for meta in metas
        .chain(children.service.as_ref().map(|one| &one.metadata))
        .chain(&around)
    {
        let owner = &meta.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.controller), ("owner-uid", Some(true)));
        assert_eq!(
            meta.labels.as_ref().unwrap()[names::LABEL_MANAGED_BY],
            names::MANAGED_BY
        );
    }
}
