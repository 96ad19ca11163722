//! Fake nodes with GPUs: the real scheduler fills them, and says what is missing when they are full.

use std::time::Duration;

use escadre_e2e::fixtures;
use escadre_e2e::testing::fake_nodes;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};

/// 20 nodes of 8.
const GPUS: usize = 160;

#[tokio::test]
async fn gpu_pods_fill_the_nodes_and_the_next_stays_pending() {
    let namespace = fake_nodes().await.unwrap().namespace().await.unwrap();
    let pods: Api<Pod> = namespace.api();
    let make = async |name: String| {
        let pod = serde_json::from_value(fixtures::gpu_pod(&name, 1)).unwrap();
        pods.create(&PostParams::default(), &pod).await
    };
    try_join_all((0..GPUS).map(|number| make(format!("gpu-{number}"))))
        .await
        .unwrap();
    namespace
        .await_condition("all GPU pods to run", Duration::from_secs(90), async || {
            let list = pods.list(&ListParams::default()).await?;
            Ok((list.items.iter().filter(|pod| is_ready(pod)).count() == GPUS).then_some(()))
        })
        .await
        .unwrap();
    make("one-too-many".to_owned()).await.unwrap();
    let message = namespace
        .await_condition("the scheduler's refusal", Duration::from_secs(30), async || {
            Ok(refusal(&pods.get("one-too-many").await?))
        })
        .await
        .unwrap();
    assert!(message.contains("20 Insufficient nvidia.com/gpu"), "{message}");
}

#[tokio::test]
async fn pods_of_fake_nodes_have_addresses_that_a_server_in_the_network_answers() {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    let network = fake_nodes().await.unwrap().own().unwrap().network();
    let text = tokio::task::spawn_blocking(move || {
        network.inside(|| {
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let asked = stream.local_addr().unwrap().ip().to_string();
                stream.write_all(asked.as_bytes()).unwrap();
            });
            let mut text = String::new();
            TcpStream::connect(("10.245.7.9", port))
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        })
    });
    assert_eq!(text.await.unwrap().unwrap(), "10.245.7.9");
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn refusal(pod: &Pod) -> Option<String> {
    let condition = pod
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == "PodScheduled")?;
    (condition.status == "False")
        .then(|| condition.message.clone())
        .flatten()
}
