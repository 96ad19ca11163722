//! Fake nodes with GPUs: the real scheduler places pods on them, kwok plays their kubelet.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::network::{FAKE_POD_RANGE, NODE_ADDRESS};
use super::{Cluster, Component, Options};

/// Annotation of the nodes that kwok plays.
pub const FAKE_NODE_ANNOTATION: &str = "kwok.x-k8s.io/node";

impl Cluster {
    /// Starts kwok and makes the fake nodes that are missing.
    pub(super) async fn start_fake_nodes(&mut self, options: &Options) -> Result<()> {
        if options.fake_nodes == 0 {
            return Ok(());
        }
        self.start_component(Component::Kwok, self.kwok_arguments()?)?;
        let nodes: Api<Node> = Api::all(self.client().await?);
        for number in 0..options.fake_nodes {
            let node = fake_node(&format!("fake-{number}"), options.gpus, self.state.node)?;
            match nodes.create(&PostParams::default(), &node).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(error).context("could not make a fake node"),
            }
        }
        self.state.fake_nodes = self.state.fake_nodes.max(options.fake_nodes);
        self.state.write(&self.folder)
    }

    fn kwok_arguments(&self) -> Result<Vec<String>> {
        let program = self.programs.file(Component::Kwok)?;
        let stages = program.parent().context("kwok has no folder")?.join("stages.yaml");
        Ok(vec![
            format!("--kubeconfig={}", self.component_kubeconfig("kwok")),
            format!("--config={}", stages.display()),
            format!("--manage-nodes-with-annotation-selector={FAKE_NODE_ANNOTATION}=fake"),
            format!("--cidr={FAKE_POD_RANGE}"),
            format!("--node-ip={NODE_ADDRESS}"),
            "--node-lease-duration-seconds=40".to_owned(),
        ])
    }
}

/// A node object for kwok with `gpus` GPUs. With `tainted`, only pods that tolerate `nvidia.com/gpu` go there, so that
/// ordinary pods of a mixed cluster run on the real node.
pub fn fake_node(name: &str, gpus: u32, tainted: bool) -> Result<Node> {
    let resources: BTreeMap<&str, String> = [
        ("cpu", "64".to_owned()),
        ("memory", "512Gi".to_owned()),
        ("ephemeral-storage", "1Ti".to_owned()),
        ("pods", "110".to_owned()),
        ("nvidia.com/gpu", gpus.to_string()),
    ]
    .into();
    let taints = if tainted {
        json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}])
    } else {
        json!([])
    };
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE_NODE_ANNOTATION: "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/role": "agent",
                "type": "kwok",
                "nvidia.com/gpu.product": "FAKE-GPU",
            },
        },
        "spec": {"taints": taints},
        "status": {"capacity": resources, "allocatable": resources},
    }))
    .context("a fake node is not a Node")
}
