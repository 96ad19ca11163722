//! Escadre itself on a cluster of the test bed: its resource, its operator, its images, and models to serve.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use escadre_crds::{LlmDeployment, ModelPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::OnceCell;

use crate::cluster::{Cache, Cluster, Image, NODE_ADDRESS, Target, hex, own_program};
use crate::operator::{Operator, Start};
use crate::testing::{self, TestCluster, TestNamespace};
use crate::wait::await_condition;

/// File name of the small real model, in the cache and in the mirror.
pub const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Where the mirror has it.
pub const MODEL_SOURCE: &str = "hf://fixture-owner/smollm2";
/// Its digest.
pub const MODEL_DIGEST: &str = escadre_crds::examples::SMOLLM2_DIGEST;

/// File name of the second model, the same weights in another precision, in the cache and in the mirror.
pub const SECOND_MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q8_0-1.gguf";
/// Where the mirror has it, once [`add_second_model`] was called.
pub const SECOND_MODEL_SOURCE: &str = "hf://fixture-owner/smollm2-eight";
/// Its digest.
pub const SECOND_MODEL_DIGEST: &str = "sha256:0c1d3326cd9793cfb7296113c063dd5c24e2bd734b48ec1a3d01b7158eca9387";

/// The tag of images in scenarios; unlike the defaults, so that a swapped image shows.
const TAG: &str = "scenario";

/// The small real model in the cache.
pub fn model_file(cache: &Cache) -> Result<PathBuf> {
    let file = cache.folder("models")?.join(MODEL_FILE);
    anyhow::ensure!(file.is_file(), "{} is missing; run `make models`", file.display());
    Ok(file)
}

/// A program of ours that was built beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let file = own_program()?.with_file_name(name);
    anyhow::ensure!(
        file.is_file(),
        "{} is missing; run `cargo build --workspace`",
        file.display()
    );
    Ok(file)
}

/// The root of the source tree.
pub fn source_tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Installs the resources and waits until they are served.
pub async fn install_resource(cluster: &Cluster) -> Result<()> {
    let client = cluster.client().await?;
    install(&client, &LlmDeployment::crd()).await?;
    install(&client, &ModelPolicy::crd()).await
}

async fn install(client: &Client, definition: &CustomResourceDefinition) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = &definition.name_any();
    definitions
        .patch(name, &PatchParams::apply("scenario").force(), &Patch::Apply(definition))
        .await
        .context("could not install the resource")?;
    await_condition(
        client,
        "default",
        "the resource to be served",
        Duration::from_secs(20),
        async || {
            let served = definitions
                .get(name)
                .await?
                .status
                .and_then(|status| status.conditions)
                .is_some_and(|conditions| {
                    conditions
                        .iter()
                        .any(|condition| condition.type_ == "Established" && condition.status == "True")
                });
            Ok(served.then_some(()))
        },
    )
    .await
}

/// A namespace on the shared control plane without nodes, with the resource installed and one operator beside it.
pub async fn operated_namespace() -> Result<TestNamespace> {
    static OPERATOR: OnceCell<()> = OnceCell::const_new();
    let shared = testing::control_plane().await?;
    OPERATOR
        .get_or_try_init(async || {
            install_resource(shared.own()?).await?;
            start_operator(shared.own()?)
        })
        .await?;
    shared.namespace().await
}

/// Starts the operator as a process inside the cluster's network, with the administrator's rights, for as long as the
/// cluster lives.
pub fn start_operator(cluster: &Cluster) -> Result<()> {
    let start = Start::new().admin("127.0.0.1:8081");
    start.start_as(cluster, "operator").map(Operator::keep)
}

/// Loads the image of a part (`operator` or `runtime`) into the node.
pub async fn load_image(cluster: &Cluster, part: &str) -> Result<()> {
    let image = Image::service(
        &format!("escadre.dev/{part}:{TAG}"),
        &program(&format!("escadre-{part}"))?,
    )?;
    cluster.load_image(&image).await.map(drop)
}

/// Installs Escadre as a user does: images into the node, the chart by Helm.
pub async fn install_chart(cluster: &Cluster) -> Result<()> {
    for part in ["operator", "runtime"] {
        load_image(cluster, part).await?;
    }
    let chart = source_tree().join("charts/escadre").display().to_string();
    let tags = [format!("operator.image.tag={TAG}"), format!("runtime.image.tag={TAG}")];
    let arguments = [
        "upgrade",
        "--install",
        "escadre",
        &chart,
        "--namespace",
        "escadre-system",
        "--create-namespace",
        "--wait",
        "--timeout",
        "3m",
        "--set",
        &tags[0],
        "--set",
        &tags[1],
    ];
    cluster.output("helm", &arguments).await.map(drop)
}

/// Starts a mirror of `root` on a port of the node, which misbehaves as `fault` says, and returns its URL.
pub async fn start_mirror(cluster: &Cluster, root: &Path, port: u16, fault: Option<&str>) -> Result<String> {
    let name = format!("mirror-{port}");
    let listen = format!("{NODE_ADDRESS}:{port}");
    let mut arguments = vec![
        "mirror".to_owned(),
        format!("--root={}", root.display()),
        format!("--listen={listen}"),
    ];
    arguments.extend(fault.map(|fault| format!("--fault={fault}")));
    cluster.start_process(&name, &own_program()?, arguments)?;
    cluster.await_listening(&name, &listen).await?;
    Ok(format!("http://{listen}"))
}

/// A folder for a mirror with the real model and with broken ones, each under `fixture-owner`.
pub fn mirror_root(cluster: &Cluster) -> Result<PathBuf> {
    let root = cluster.folder().join("mirror");
    let cache = Cache::from_environment()?;
    let model = model_file(&cache)?;
    place(&root, "smollm2", MODEL_FILE, |target| link(&model, target))?;
    let whole = fs::read(&model).with_context(|| format!("could not read {}", model.display()))?;
    place(&root, "truncated", "model.gguf", |target| {
        fs::write(target, &whole[..1 << 20])
    })?;
    place(&root, "text", "model.gguf", |target| {
        fs::write(target, "This is not a model.\n".repeat(100))
    })?;
    place(&root, "foreign", "model.gguf", |target| {
        fs::write(target, foreign_architecture())
    })?;
    Ok(root)
}

/// Puts the second model into the folder of a mirror.
pub fn add_second_model(root: &Path) -> Result<()> {
    let file = Cache::from_environment()?.folder("models")?.join(SECOND_MODEL_FILE);
    anyhow::ensure!(file.is_file(), "{} is missing; run `make models`", file.display());
    place(root, "smollm2-eight", SECOND_MODEL_FILE, |target| link(&file, target))
}

fn link(file: &Path, target: &Path) -> std::io::Result<()> {
    fs::hard_link(file, target).or_else(|_| fs::copy(file, target).map(drop))
}

fn place(root: &Path, model: &str, file: &str, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let folder = root.join("fixture-owner").join(model);
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    let target = folder.join(file);
    if target.exists() {
        return Ok(());
    }
    write(&target).with_context(|| format!("could not write {}", target.display()))
}

/// A well-formed GGUF file of an architecture that is not supported: one key, no tensors.
pub fn foreign_architecture() -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let header = [
        &b"GGUF"[..],
        &3u32.to_le_bytes(),
        &0u64.to_le_bytes(),
        &1u64.to_le_bytes(),
    ]
    .concat();
    let key = [
        string("general.architecture"),
        8u32.to_le_bytes().to_vec(),
        string("mamba"),
    ]
    .concat();
    [header, key].concat()
}

/// The digest of a single file with this content.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

/// An open way to a Service.
#[derive(Debug)]
pub struct Reached {
    base: String,
    /// On a cluster that a person named: `kubectl port-forward`, which ends with this value, and its output, without
    /// whose reader it would end at once.
    _forward: Option<(Child, Lines<BufReader<ChildStdout>>)>,
}

impl Reached {
    /// The base address on this machine, such as `http://127.0.0.1:40001`.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// Makes the API of a deployment answer on this machine.
pub async fn reach(cluster: &TestCluster, namespace: &str, name: &str) -> Result<Reached> {
    match cluster {
        TestCluster::Own(own) => {
            let target = Target::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port: 80,
            };
            let forward = own
                .cluster()
                .forward(&format!("{namespace}-{name}"), "127.0.0.1:0", &target)
                .await?;
            Ok(Reached {
                base: format!("http://{}", forward.listen),
                _forward: None,
            })
        }
        TestCluster::Named { context } => {
            let service = format!("svc/{name}");
            let mut forward = Command::new("kubectl")
                .args([
                    "--context",
                    context,
                    "--namespace",
                    namespace,
                    "port-forward",
                    &service,
                    ":80",
                ])
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("could not start kubectl; it must be in PATH")?;
            let output = forward.stdout.take().context("kubectl has no output")?;
            let mut lines = BufReader::new(output).lines();
            let line = lines.next_line().await?.context("kubectl port-forward ended")?;
            // Forwarding from 127.0.0.1:40001 -> 8080
            let address = line.split(' ').find(|word| word.starts_with("127.0.0.1:"));
            let address = address.with_context(|| format!("kubectl port-forward printed {line:?}"))?;
            Ok(Reached {
                base: format!("http://{address}"),
                _forward: Some((forward, lines)),
            })
        }
    }
}
