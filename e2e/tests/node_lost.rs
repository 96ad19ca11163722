//! The node stays there and does not answer: its kubelet was killed. Always on the test bed, and in a binary of its own:
//! nobody else needs the node meanwhile, and nobody else's kubelet is killed.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use escadre_crds::names;
use escadre_e2e::cluster::Component;
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::{Value, json};

/// The cluster gives a node 50 s to report, and our pods 20 s more.
const LOST: Duration = Duration::from_mins(4);

fn tolerates(key: &str) -> Value {
    json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20})
}

/// Slots of the pods that are not terminating, and of those that are.
async fn slots(scenario: &Scenario) -> Result<(Vec<u32>, Vec<u32>)> {
    let parameters = ListParams::default().labels(&names::selector("kept"));
    let pods = scenario.namespace().api::<Pod>().list(&parameters).await?;
    let (terminating, alive): (Vec<Pod>, Vec<Pod>) = pods
        .into_iter()
        .partition(|pod| pod.metadata.deletion_timestamp.is_some());
    let slots = |pods: Vec<Pod>| -> Vec<u32> {
        let names = pods.iter().map(kube::ResourceExt::name_any);
        names
            .filter_map(|name: String| Some(names::parse_pod_name("kept", &name)?.1))
            .collect()
    };
    Ok((slots(alive), slots(terminating)))
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_node_is_named_its_pods_are_replaced_and_do_not_count_and_its_return_serves_nothing_twice() {
    let cluster = testing::cluster_beside_fake_nodes().await.unwrap();
    let scenario = Scenario::on(cluster).await.unwrap();
    let cluster = scenario.test_bed().unwrap();
    let tolerations = [
        tolerates("node.kubernetes.io/not-ready"),
        tolerates("node.kubernetes.io/unreachable"),
    ];
    let deployment = scenario
        .model("kept")
        .set("/spec/placement/tolerations", json!(tolerations));
    scenario.create(deployment).await.unwrap();
    scenario.await_ready("kept").await.unwrap();

    let kubelet = Component::Kubelet.name();
    let record = cluster.processes().record(kubelet).unwrap();
    cluster.stop_process(kubelet, Duration::ZERO);
    let (message, _) = scenario
        .await_failure_within("kept", ("Available", "NodeLost"), LOST)
        .await
        .unwrap();
    assert!(message.contains("kubectl describe node"), "{message}");

    // The old pod hangs and holds its name; the new one has the next slot and no node.
    scenario
        .namespace()
        .await_condition("a replacement in the next slot", LOST, async || {
            Ok((slots(&scenario).await? == (vec![1], vec![0])).then_some(()))
        })
        .await
        .unwrap();
    let (message, status) = scenario
        .await_failure_within("kept", ("CapacityAvailable", "Unschedulable"), LOST)
        .await
        .unwrap();
    assert!(message.contains("taint"), "{message}");
    assert_eq!(status.replicas, 1, "the pod on the lost node is not counted");

    let (program, arguments) = record.command.split_first().unwrap();
    cluster
        .start_process(kubelet, Path::new(program), arguments.to_vec())
        .unwrap();
    let status = scenario.await_ready("kept").await.unwrap();
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
    scenario
        .namespace()
        .await_condition("the old pod to go", LOST, async || {
            Ok((slots(&scenario).await? == (vec![1], vec![])).then_some(()))
        })
        .await
        .unwrap();
    assert_eq!(scenario.ready_pods("kept").await.unwrap().len(), 1);
}
