//! Start, stop and list: the order of things, and what happens to the remains of an interrupted run.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cgroups::Cgroups;
use super::mounts::unmount_below;
use super::{
    Cache, Cluster, Component, Network, Options, Phase, Processes, Programs, State, build, check_name, toolchain,
};

/// The kernel's limit for the path of a socket is 108 bytes; containerd adds `.ttrpc`.
const LONGEST_SOCKET_PATH: usize = 100;

/// Brings a cluster up, or finds it up. Progress goes to standard error.
///
/// A cluster of that name which is incomplete (a killed run, a dead process) is removed and started anew.
pub async fn up(cache: &Cache, options: &Options) -> Result<Cluster> {
    check_name(&options.name)?;
    toolchain::require_root("starting a cluster")?;
    toolchain::require_base_packages().await?;
    if options.node {
        toolchain::require_node_packages().await?;
    }
    let programs = build::ensure(cache, &needed(options)).await?;
    sweep(cache).await;
    let _lock = cache.lock(&lock_name(&options.name)).await?;
    let folder = cache.clusters().join(&options.name);
    if let Some(cluster) = reuse(cache, &folder, options, &programs).await? {
        return Ok(cluster);
    }
    check_free(&folder, &options.name)?;
    match start(cache, &folder, options, programs).await {
        Ok(cluster) => Ok(cluster),
        Err(error) => {
            // The logs stay for the person; the next `up` or `down` removes them.
            if let Ok(Some(state)) = State::read(&folder) {
                stop_everything(&folder, &state)
                    .await
                    .context("could not clean up after a failed start")?;
            }
            Err(error)
        }
    }
}

/// Ends a cluster and removes all that it made; fine when there is none.
pub async fn down(cache: &Cache, name: &str) -> Result<bool> {
    check_name(name)?;
    toolchain::require_root("stopping a cluster")?;
    let _lock = cache.lock(&lock_name(name)).await?;
    remove(&cache.clusters().join(name)).await
}

/// States of all clusters in the cache, sorted by name.
pub fn list(cache: &Cache) -> Result<Vec<State>> {
    let mut states = Vec::new();
    let folder = cache.clusters();
    if !folder.exists() {
        return Ok(states);
    }
    for entry in fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))? {
        let entry = entry.context("could not read the folder of clusters")?;
        states.extend(State::read(&entry.path())?);
    }
    states.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(states)
}

fn lock_name(cluster: &str) -> String {
    format!("cluster-{cluster}")
}

fn needed(options: &Options) -> Vec<Component> {
    let mut components = Component::CONTROL_PLANE.to_vec();
    if options.node {
        components.extend(Component::NODE);
        components.push(Component::Helm);
    }
    if options.fake_nodes > 0 {
        components.push(Component::Kwok);
    }
    components
}

/// The cluster as it stands, if everything of it runs; otherwise its remains are removed.
async fn reuse(cache: &Cache, folder: &Path, options: &Options, programs: &Programs) -> Result<Option<Cluster>> {
    let Some(state) = State::read(folder)? else {
        return Ok(None);
    };
    let name = &options.name;
    let mut cluster = Cluster {
        cache: cache.clone(),
        folder: folder.to_owned(),
        state,
        programs: programs.clone(),
    };
    let dead = cluster.broken();
    let is_whole = cluster.state.phase == Phase::Up && cluster.state.node == options.node && dead.is_empty();
    if is_whole && Network::of(name).exists() && cluster.is_ready().await {
        cluster.link_programs()?;
        cluster.start_fake_nodes(options).await?;
        eprintln!("the cluster {name} is up already");
        return Ok(Some(cluster));
    }
    let names: Vec<&str> = dead.iter().map(|record| record.name.as_str()).collect();
    if names.is_empty() {
        eprintln!("removing the remains of an earlier cluster {name}");
    } else {
        eprintln!(
            "removing the remains of an earlier cluster {name} (not running: {})",
            names.join(", ")
        );
    }
    remove(folder).await?;
    Ok(None)
}

fn check_free(folder: &Path, name: &str) -> Result<()> {
    if Network::of(name).exists() {
        bail!(
            "a network namespace escadre-{name} exists, but not from this cache: stop that cluster with its own ESCADRE_CACHE, choose another --name, or run `ip netns del escadre-{name}`"
        );
    }
    let socket = folder.join("containerd.sock");
    if socket.as_os_str().as_bytes().len() > LONGEST_SOCKET_PATH {
        bail!(
            "the path {} is too long for a socket: set ESCADRE_CACHE to a shorter folder",
            socket.display()
        );
    }
    Ok(())
}

async fn start(cache: &Cache, folder: &Path, options: &Options, programs: Programs) -> Result<Cluster> {
    let started = Instant::now();
    let name = &options.name;
    eprintln!("starting the cluster {name}");
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    let state = State::starting(options)?;
    state.write(folder)?;
    let mut cluster = Cluster {
        cache: cache.clone(),
        folder: folder.to_owned(),
        state,
        programs,
    };
    cluster.link_programs()?;
    cluster.network().create().await?;
    cluster.certificates().create()?;
    if let Some(policy) = &options.audit_policy {
        fs::copy(policy, cluster.audit_policy()).with_context(|| format!("could not copy {}", policy.display()))?;
    }
    cluster.start_control_plane().await?;
    eprintln!("  control plane ready after {:.1} s", started.elapsed().as_secs_f32());
    if options.node {
        cluster.start_node().await?;
        eprintln!("  node ready after {:.1} s", started.elapsed().as_secs_f32());
    }
    cluster.start_fake_nodes(options).await?;
    cluster.await_default_account().await?;
    cluster.state.phase = Phase::Up;
    cluster.state.write(folder)?;
    eprintln!(
        "the cluster {name} is up after {:.1} s",
        started.elapsed().as_secs_f32()
    );
    Ok(cluster)
}

/// Removes clusters whose owner is gone: a killed test leaves one when its guard was killed too.
async fn sweep(cache: &Cache) {
    for state in list(cache).unwrap_or_default() {
        if state
            .owner
            .is_some_and(|owner| state.is_of_another_boot() || !owner.is_alive())
        {
            eprintln!("removing the cluster {}, whose owner is gone", state.name);
            if let Err(error) = down(cache, &state.name).await {
                eprintln!("  {error:#}");
            }
        }
    }
}

async fn remove(folder: &Path) -> Result<bool> {
    let Some(state) = State::read(folder)? else {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
        }
        return Ok(false);
    };
    stop_everything(folder, &state).await?;
    fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
    Ok(true)
}

/// Ends the processes, then the containers, then what they had mounted, then the network.
async fn stop_everything(folder: &Path, state: &State) -> Result<()> {
    let cgroups = Cgroups::of(&state.name);
    if !state.is_of_another_boot() {
        let processes = Processes::new(folder, &state.identity);
        // The kubelet first: it would start again what we end.
        processes.stop("kubelet", Duration::from_millis(500));
        super::node::remove_shim_sockets(folder);
        // Containers before containerd: their shims see them end and tidy up.
        let containers = cgroups.clone();
        tokio::task::spawn_blocking(move || containers.remove())
            .await
            .context("a clean-up task panicked")??;
        tokio::task::spawn_blocking(move || processes.stop_all(Duration::from_millis(500)))
            .await
            .context("a clean-up task panicked")?;
        cgroups.remove()?;
    }
    unmount_below(folder)?;
    super::node::remove_traces(folder, &state.name);
    Network::of(&state.name).remove().await
}
