//! What others do with an `LlmDeployment`: kubectl, the autoscaler, tools that sync from git, node maintenance, a newer
//! operator.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::cluster::Cluster;
use escadre_e2e::escadre;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::metrics_api::MetricsApi;
use escadre_e2e::operator::OperatorChild;
use escadre_e2e::testing::{self, TestNamespace};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(1);

/// A namespace on fake nodes with an operator of its own.
struct World {
    cluster: &'static Cluster,
    namespace: TestNamespace,
    operator: Option<OperatorChild>,
    port: u16,
}

impl World {
    async fn start(port: u16) -> Self {
        let shared = testing::fake_nodes().await.unwrap();
        let cluster = shared.own().unwrap();
        escadre::install_resource(cluster).await.unwrap();
        let mut world = Self {
            cluster,
            namespace: shared.namespace().await.unwrap(),
            operator: None,
            port,
        };
        world.run_operator("escadre.dev/runtime:one").await;
        world
    }

    /// Replaces the operator by one with another default image.
    async fn run_operator(&mut self, image: &str) {
        if let Some(operator) = self.operator.take() {
            assert!(operator.stop().await.unwrap().success());
        }
        let image = format!("--runtime-image={image}");
        let watched = format!("--namespace={}", self.namespace.name());
        let operator = OperatorChild::start(self.cluster, self.port, None, &[&image, &watched]).unwrap();
        self.operator = Some(operator);
    }

    async fn create(&self, deployment: Deployment) {
        self.namespace.create_deployment(deployment).await.unwrap();
    }

    async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let all = [&["--namespace", self.namespace.name()][..], arguments].concat();
        self.cluster.output("kubectl", &all).await
    }

    /// Pods that run and are not being deleted, by name, once there are `count`.
    async fn await_pods(&self, name: &str, count: usize) -> BTreeMap<String, Pod> {
        let api: Api<Pod> = self.namespace.api();
        let selector = ListParams::default().labels(&names::selector(name));
        self.namespace
            .await_condition(&format!("{count} running pods of {name}"), SOON, async || {
                let pods: BTreeMap<String, Pod> = api
                    .list(&selector)
                    .await?
                    .into_iter()
                    .filter(|pod| pod.metadata.deletion_timestamp.is_none())
                    .map(|pod| (pod.name_any(), pod))
                    .collect();
                let all_run = pods.values().all(|pod| {
                    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                    phase == Some("Running")
                });
                Ok((pods.len() == count && all_run).then_some(pods))
            })
            .await
            .unwrap()
    }

    async fn get(&self, name: &str) -> LlmDeployment {
        self.namespace.api().get(name).await.unwrap()
    }
}

fn uids(pods: &BTreeMap<String, Pod>) -> Vec<String> {
    pods.values().filter_map(Pod::uid).collect()
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().node_name.clone().unwrap()
}

#[tokio::test]
async fn kubectl_scales_explains_describes_and_lists() {
    let world = World::start(18211).await;
    world.create(Deployment::named("chat")).await;
    world.await_pods("chat", 1).await;
    world.kubectl(&["scale", "llm/chat", "--replicas=3"]).await.unwrap();
    world.await_pods("chat", 3).await;
    world
        .kubectl(&["scale", "llm/chat", "--current-replicas=3", "--replicas=2"])
        .await
        .unwrap();
    world.await_pods("chat", 2).await;
    let scale = format!(
        "/apis/escadre.dev/v1alpha1/namespaces/{}/llmdeployments/chat/scale",
        world.namespace.name()
    );
    let scale = world
        .namespace
        .await_condition("the scale to say 2", SOON, async || {
            let text = world.kubectl(&["get", "--raw", &scale]).await?;
            let scale: Value = serde_json::from_str(&text)?;
            Ok((scale["status"]["replicas"] == 2).then_some(scale))
        })
        .await
        .unwrap();
    assert_eq!(scale["status"]["selector"], json!(names::selector("chat")));

    let text = world.kubectl(&["explain", "llm.spec.model"]).await.unwrap();
    for word in ["source", "verification", "servedName"] {
        assert!(text.contains(word), "{text}");
    }
    let text = world.kubectl(&["explain", "llm.spec.replicas"]).await.unwrap();
    assert!(text.contains("DESCRIPTION") && !text.contains("<empty>"), "{text}");
    let text = world.kubectl(&["get", "llm"]).await.unwrap();
    let head: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "READY", "MODEL", "DIGEST", "VERIFIED", "STATUS", "AGE"]);
    let text = world.kubectl(&["describe", "llm", "chat"]).await.unwrap();
    for word in ["Conditions:", "Observed Generation:", "Events:", "Endpoint:"] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
}

#[tokio::test]
async fn autoscaler_moves_it_both_ways() {
    let world = World::start(18212).await;
    world.create(Deployment::named("crowd")).await;
    world.await_pods("crowd", 1).await;
    let metrics = MetricsApi::start(world.cluster, 18213).await.unwrap();
    metrics.set(10);
    let now = json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 1}]});
    let autoscaler: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": {"name": "crowd"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "escadre.dev/v1alpha1", "kind": "LlmDeployment", "name": "crowd"},
            "minReplicas": 1,
            "maxReplicas": 5,
            "metrics": [{"type": "External", "external": {
                "metric": {"name": "queue_length"},
                "target": {"type": "AverageValue", "averageValue": "10"},
            }}],
            "behavior": {"scaleUp": now, "scaleDown": now},
        },
    }))
    .unwrap();
    let api: Api<HorizontalPodAutoscaler> = world.namespace.api();
    api.create(&PostParams::default(), &autoscaler).await.unwrap();
    world
        .namespace
        .await_condition("ScalingActive=True", SOON, async || {
            let status = api.get("crowd").await?.status;
            let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
            let is_active = |type_: &str| conditions.iter().any(|one| one.type_ == type_ && one.status == "True");
            Ok((is_active("ScalingActive") && is_active("AbleToScale")).then_some(()))
        })
        .await
        .unwrap();
    metrics.set(40);
    let grown = world.await_pods("crowd", 4).await;
    metrics.set(20);
    let shrunk = world.await_pods("crowd", 2).await;
    assert!(
        shrunk.iter().all(|(name, pod)| grown[name].uid() == pod.uid()),
        "those that stay are those that were there"
    );
    assert_eq!(world.get("crowd").await.spec.replicas, 2);
}

#[tokio::test]
async fn repeated_apply_of_a_manifest_without_replicas_leaves_the_scalers_number() {
    let world = World::start(18214).await;
    let file = world.cluster.folder().join(format!("{}.json", world.namespace.name()));
    std::fs::write(&file, Deployment::named("synced").into_value().to_string()).unwrap();
    let file = file.display().to_string();
    let sync = [
        "apply",
        "--server-side",
        "--field-manager=argocd-controller",
        "-f",
        &file,
    ];
    world.kubectl(&sync).await.unwrap();
    world.await_pods("synced", 1).await;
    world.kubectl(&["scale", "llm/synced", "--replicas=3"]).await.unwrap();
    let pods = world.await_pods("synced", 3).await;
    let before = world.get("synced").await;
    for _ in 0..3 {
        // Without --force-conflicts: a conflict would be an error.
        world.kubectl(&sync).await.unwrap();
    }
    let after = world.get("synced").await;
    assert_eq!(after.spec.replicas, 3);
    assert_eq!(before.metadata.generation, after.metadata.generation);
    assert_eq!(uids(&pods), uids(&world.await_pods("synced", 3).await));
    // No difference to what git says: `kubectl diff` ends with 1 when there is one.
    world
        .kubectl(&[
            "diff",
            "--server-side",
            "--field-manager=argocd-controller",
            "-f",
            &file,
        ])
        .await
        .unwrap();

    let owners = after.metadata.managed_fields.unwrap();
    let spec_of = |manager: &str| -> Vec<Value> {
        owners
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some(manager))
            .filter_map(|entry| entry.fields_v1.as_ref().map(|fields| fields.0["f:spec"].clone()))
            .filter(|spec| !spec.is_null())
            .collect()
    };
    let git = spec_of("argocd-controller");
    assert!(git.len() == 1 && git[0].get("f:replicas").is_none(), "{git:?}");
    for ours in [names::FIELD_MANAGER, names::STATUS_MANAGER] {
        assert!(spec_of(ours).is_empty(), "{ours} owns a part of the spec");
    }
    // Client-side apply, as Flux's older versions and people do it, neither.
    world.kubectl(&["apply", "-f", &file]).await.unwrap();
    assert_eq!(world.get("synced").await.spec.replicas, 3);
}

#[tokio::test]
async fn drain_of_a_node_honours_a_budget_and_ends_when_it_allows() {
    let world = World::start(18215).await;
    world.create(Deployment::named("steady").replicas(2)).await;
    let before = world.await_pods("steady", 2).await;
    let budget = |available: i32| -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "steady-by-hand"},
            "spec": {"minAvailable": available, "selector": {"matchLabels": {names::LABEL_DEPLOYMENT: "steady"}}},
        }))
        .unwrap()
    };
    let api: Api<PodDisruptionBudget> = world.namespace.api();
    api.create(&PostParams::default(), &budget(2)).await.unwrap();
    world
        .namespace
        .await_condition("the budget to count", SOON, async || {
            let status = api.get("steady-by-hand").await?.status;
            Ok(status.filter(|status| status.current_healthy == 2).map(drop))
        })
        .await
        .unwrap();
    let (name, pod) = before.first_key_value().unwrap();
    let node = node(pod);
    let selector = format!("--pod-selector={}=steady", names::LABEL_DEPLOYMENT);
    let drain = [
        "drain",
        &node,
        "--delete-emptydir-data",
        "--ignore-daemonsets",
        &selector,
    ];
    let refused = world
        .kubectl(&[&drain[..], &["--timeout=3s"]].concat())
        .await
        .unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("disruption budget"), "{refused}");
    assert_eq!(uids(&before), uids(&world.await_pods("steady", 2).await));

    let params = kube::api::DeleteParams::default();
    api.delete("steady-by-hand", &params).await.unwrap();
    api.create(&PostParams::default(), &budget(1)).await.unwrap();
    world.kubectl(&[&drain[..], &["--timeout=60s"]].concat()).await.unwrap();
    let after = world.await_pods("steady", 2).await;
    assert!(after.values().all(|pod| self::node(pod) != node), "the node is empty");
    assert!(!uids(&after).contains(&pod.uid().unwrap()), "{name} was replaced");
    world.kubectl(&["uncordon", &node]).await.unwrap();
    let nodes: Api<Node> = Api::all(world.namespace.client().clone());
    assert_ne!(nodes.get(&node).await.unwrap().spec.unwrap().unschedulable, Some(true));
}

#[tokio::test]
async fn newer_operator_with_another_default_image_touches_no_pod() {
    let mut world = World::start(18216).await;
    world.create(Deployment::named("old").replicas(2)).await;
    let before = world.await_pods("old", 2).await;
    world.run_operator("escadre.dev/runtime:two").await;
    // The new operator has worked: it makes pods of a new object with its own default.
    world.create(Deployment::named("new")).await;
    let new = world.await_pods("new", 1).await;
    assert_eq!(image(new.values().next().unwrap()), "escadre.dev/runtime:two");
    world.kubectl(&["scale", "llm/old", "--replicas=3"]).await.unwrap();
    let after = world.await_pods("old", 3).await;
    for (name, pod) in &before {
        assert_eq!(after[name].uid(), pod.uid(), "{name} was replaced");
    }
    assert!(
        after.values().all(|pod| image(pod) == "escadre.dev/runtime:one"),
        "a revision keeps the image that it was made with"
    );
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

#[tokio::test]
async fn edited_child_is_put_right_and_counted() {
    let world = World::start(18217).await;
    world.create(Deployment::named("edited")).await;
    world.await_pods("edited", 1).await;
    let api: Api<Service> = world.namespace.api();
    let port = async || -> anyhow::Result<i32> {
        let spec = api.get("edited").await?.spec.unwrap_or_default();
        Ok(spec.ports.unwrap_or_default().first().map_or(0, |port| port.port))
    };
    world
        .namespace
        .await_condition("the Service", SOON, async || Ok(api.get_opt("edited").await?.map(drop)))
        .await
        .unwrap();
    let before = port().await.unwrap();
    let edit = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 8088}]"#;
    world
        .kubectl(&["patch", "service", "edited", "--type=json", "--patch", edit])
        .await
        .unwrap();
    world
        .namespace
        .await_condition("the port to be put right", SOON, async || {
            Ok((port().await? == before).then_some(()))
        })
        .await
        .unwrap();
    let (_, page) = world.operator.as_ref().unwrap().get("/metrics").unwrap();
    let line = "escadre_operator_drift_put_right_total{kind=\"Service\"} ";
    assert!(page.contains(line), "{page}");
}
