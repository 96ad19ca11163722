//! Nothing is left behind: not by a test that ends, not by one that is killed.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use escadre_e2e::cluster::{Cache, Options, ProcessId, Record, down, list, up};
use escadre_e2e::testing::OwnCluster;

fn namespace_file(name: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("escadre-{name}"))
}

async fn until(what: &str, patience: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !check() {
        assert!(Instant::now() < deadline, "waited {} s for {what}", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn alive(records: &[Record]) -> Vec<&str> {
    records
        .iter()
        .filter(|record| record.process.is_alive())
        .map(|record| record.name.as_str())
        .collect()
}

fn kill(process: ProcessId) {
    assert!(process.is_alive());
    let pid = rustix::process::Pid::from_raw(process.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The whole life of one cluster that loses everybody who should have cleaned up after it.
#[tokio::test]
async fn cluster_of_a_killed_run_is_cleaned_by_the_next() {
    let cache = Cache::from_environment().unwrap();
    let killed = OwnCluster::start("killed", &["--control-plane-only"]).await.unwrap();
    let name = killed.cluster().name().to_owned();
    let records = killed.cluster().processes().records();
    assert_eq!(alive(&records).len(), records.len());
    let guard = killed.cluster().state().owner.unwrap();
    kill(guard);
    until("the guard's end", Duration::from_secs(10), || !guard.is_alive()).await;
    assert_eq!(alive(&records).len(), records.len(), "only a new run may clean up");

    // Another cluster's start, and half-way its own loss.
    let mut options = Options::named(&format!("test-next-{}", std::process::id())).unwrap();
    options.node = false;
    let next = up(&cache, &options).await.unwrap();
    assert!(alive(&records).is_empty(), "still running: {:?}", alive(&records));
    assert!(!namespace_file(&name).exists());
    assert!(!killed.cluster().folder().exists());

    let first = next.processes().records();
    kill(next.processes().record("etcd").unwrap().process);
    let again = up(&cache, &options).await.unwrap();
    assert!(alive(&first).is_empty(), "still running: {:?}", alive(&first));
    assert!(again.is_ready().await);

    assert!(down(&cache, again.name()).await.unwrap());
    assert!(!namespace_file(again.name()).exists());
    assert!(!list(&cache).unwrap().iter().any(|state| state.name == again.name()));
    assert!(
        !down(&cache, again.name()).await.unwrap(),
        "a second stop has nothing to do"
    );
}
