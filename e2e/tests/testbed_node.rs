//! A whole node: pods really run, Services and names work, this machine reaches them through a forward.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use escadre_e2e::cluster::{API_FORWARD, NODE_ADDRESS, NODE_NAME, Target};
use escadre_e2e::fixtures;
use escadre_e2e::testing::{OwnCluster, TestNamespace};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

/// One test, because a node costs half a minute and a gigabyte; its steps build on each other.
#[tokio::test(flavor = "multi_thread")]
async fn node_runs_pods_that_find_services_by_name() {
    let own = OwnCluster::start("smoke", &[]).await.unwrap();
    let cluster = own.cluster();
    let client = cluster.client().await.unwrap();
    let node = Api::<Node>::all(client).get(NODE_NAME).await.unwrap();
    assert_eq!(node.status.unwrap().node_info.unwrap().kubelet_version, "v1.36.3");

    let namespace = own.namespace().await.unwrap();
    run_pause(&namespace).await;

    // The name server answers for the API server's own Service.
    namespace
        .await_condition(
            "the name server to know the API server",
            Duration::from_mins(1),
            async || {
                let network = cluster.network();
                let answer = tokio::task::spawn_blocking(move || {
                    network.inside(|| ask_name("kubernetes.default.svc.cluster.local"))
                });
                Ok((answer.await?? == [10, 96, 0, 1]).then_some(()))
            },
        )
        .await
        .unwrap();

    // The Service address leads to the API server, from this machine, through a forward.
    let target: Target = "svc/default/kubernetes:443".parse().unwrap();
    let forward = cluster.forward("smoke", "127.0.0.1:0", &target).await.unwrap();
    let again = cluster.forward("smoke", "127.0.0.1:0", &target).await.unwrap();
    assert_eq!(forward.listen, again.listen);
    let greeting = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(forward.listen).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let greeting = greeting.await.unwrap();
    assert!(greeting.contains("HTTP request to an HTTPS server"), "{greeting}");

    // The cluster's own way to its API server is nobody else's to replace.
    let program = escadre_e2e::escadre::program("escadre-testbed").unwrap();
    let taken = std::process::Command::new(program)
        .args([
            "forward",
            "--name",
            cluster.name(),
            "--as",
            API_FORWARD,
            "10.99.0.1:6443",
        ])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&taken.stderr).contains("choose another name"),
        "{taken:?}"
    );
    assert!(cluster.is_ready().await);
    assert!(cluster.client().await.unwrap().apiserver_version().await.is_ok());
}

async fn run_pause(namespace: &TestNamespace) {
    let pods: Api<Pod> = namespace.api();
    let mut pod = fixtures::pod("sleeper", "escadre.dev/pause:1");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "100m", "memory": "32Mi"}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
        .await
        .unwrap();
    let address = namespace
        .await_condition("the pod to run", Duration::from_mins(1), async || {
            let status = pods.get("sleeper").await?.status.unwrap_or_default();
            Ok(status.pod_ip.filter(|_| status.phase.as_deref() == Some("Running")))
        })
        .await
        .unwrap();
    assert!(address.starts_with("10.244.0."), "{address}");
    pods.logs("sleeper", &kube::api::LogParams::default()).await.unwrap();
    pods.delete("sleeper", &DeleteParams::default()).await.unwrap();
    namespace
        .await_condition("the pod to be gone", Duration::from_mins(1), async || {
            Ok(pods.get_opt("sleeper").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
}

/// Asks the cluster's name server for the address of a name.
fn ask_name(name: &str) -> [u8; 4] {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&question, (NODE_ADDRESS, 53)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    answer[length - 4..length].try_into().unwrap()
}
