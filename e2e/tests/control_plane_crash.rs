//! The operator is killed at every one of its writes, before and after the write is executed: each time a new operator
//! comes to the same world as one that was never killed.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use anyhow::Result;
use escadre_e2e::faults::Side;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::operator::Operator;
use escadre_e2e::stage::Stage;
use futures::future::join_all;
use serde_json::json;

const SEED: u64 = 4;
/// A story without a kill is over when nothing was written for this long.
const QUIET: Duration = Duration::from_secs(3);
/// Between two stories: a late write of the one would be counted in the next.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long a new operator may take to come to the same world.
const SAME: Duration = Duration::from_secs(90);
/// No story has that many writes: a sweep that gets here would not end.
const MOST: u64 = 40;

/// What the operator is killed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    Create,
    Edit,
    ScaleDown,
    Delete,
}

/// With a served name of its own: by default it is the deployment's, and the revision with it another for each.
fn deployment(name: &str, replicas: i64) -> Deployment {
    Deployment::named(name)
        .replicas(replicas)
        .set("/spec/model/servedName", json!("first-name"))
}

impl Story {
    fn base(self, name: &str) -> Option<Deployment> {
        match self {
            Self::Create => None,
            Self::Edit | Self::Delete => Some(deployment(name, 2)),
            Self::ScaleDown => Some(deployment(name, 3)),
        }
    }

    async fn begin(self, stage: &Stage, name: &str) -> Result<()> {
        match self {
            Self::Create => stage.create(deployment(name, 2)).await,
            Self::Edit => stage.edit(name, json!({"model": {"servedName": "second-name"}})).await,
            Self::ScaleDown => stage.edit(name, json!({"replicas": 1})).await,
            Self::Delete => stage.delete(name).await,
        }
    }
}

/// Plays a story once for each write and side, until one comes to its end without a kill. Returns how many kills there
/// were.
async fn sweep(story: Story) -> u64 {
    let stage = Stage::shared(SEED).await.unwrap();
    let name = |number: u64, side: Side| format!("story-{number}-{}", format!("{side:?}").to_lowercase());
    let mut operator = stage.operator().unwrap();

    // As it goes when nobody is killed, with the number of writes.
    let undisturbed = "story-undisturbed";
    prepare(&stage, story, &[undisturbed.to_owned()]).await;
    stage.proxy.forget();
    story.begin(&stage, undisturbed).await.unwrap();
    let world = stage.settle_quietly(QUIET).await.unwrap();
    let wanted = world.snapshot(undisturbed, stage.namespace().name());
    let writes = u64::try_from(stage.proxy.written().len()).unwrap();
    assert!(writes < MOST, "{writes} writes: {:?}", stage.proxy.written());

    // Once more than there were, since passes may be cut in other ways; those find nothing to stop at.
    let points: Vec<_> = (1..=writes + 1)
        .flat_map(|number| [(number, Side::Before), (number, Side::After)])
        .collect();
    let names: Vec<String> = points.iter().map(|(number, side)| name(*number, *side)).collect();
    prepare(&stage, story, &names).await;
    let mut kills = 0;
    for ((number, side), name) in points.into_iter().zip(&names) {
        stage.proxy.await_quiet(PAUSE, SAME).await.unwrap();
        stage.proxy.stop_at_write(number, side);
        story.begin(&stage, name).await.unwrap();
        if was_stopped(&stage, story, name).await {
            operator = replace(&stage, operator);
            kills += 1;
        } else {
            stage.proxy.resume();
        }
        let what = format!("the same world after a kill at write {number}, {side:?} its execution");
        let compared = async || {
            let world = stage.look().await?;
            let open = world.unsettled();
            anyhow::ensure!(open.is_empty(), "{}", open.join("; "));
            let found = world.snapshot(name, stage.namespace().name());
            anyhow::ensure!(found == wanted, "found {found}\nwanted {wanted}");
            Ok(Some(()))
        };
        stage.namespace().await_condition(&what, SAME, compared).await.unwrap();
    }
    assert!(operator.is_alive());
    kills
}

async fn prepare(stage: &Stage, story: Story, names: &[String]) {
    let bases = names
        .iter()
        .filter_map(|name| story.base(name))
        .map(|base| stage.create(base));
    for created in join_all(bases).await {
        created.unwrap();
    }
    stage.settle_quietly(QUIET).await.unwrap();
}

/// Whether the story came to the write at which the world stops, rather than to its end.
async fn was_stopped(stage: &Stage, story: Story, name: &str) -> bool {
    let over = async {
        // The end of a deletion is also seen when the operator is held.
        loop {
            tokio::time::sleep(QUIET).await;
            let world = stage.look().await.unwrap();
            let is_gone = story == Story::Delete && !world.deployments.contains_key(name);
            if (is_gone || world.unsettled().is_empty()) && stage.proxy.await_quiet(QUIET, QUIET).await.is_ok() {
                break;
            }
        }
    };
    tokio::select! {
        () = stage.proxy.stopped() => true,
        () = over => stage.proxy.is_stopped(),
    }
}

/// Kills the operator while the world stands still, and starts another.
fn replace(stage: &Stage, operator: Operator) -> Operator {
    operator.kill();
    stage.proxy.resume();
    stage.operator().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_survives_a_kill_at_every_write() {
    // Service, revision, two pods and a status at least, each before and after.
    assert!(sweep(Story::Create).await >= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edit_survives_a_kill_at_every_write() {
    // A revision, two deletions, two pods and a status at least.
    assert!(sweep(Story::Edit).await >= 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_down_survives_a_kill_at_every_write() {
    // Two deletions and a status at least.
    assert!(sweep(Story::ScaleDown).await >= 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_survives_a_kill_at_every_write() {
    // The garbage collector does the work: there need not be any write of ours.
    sweep(Story::Delete).await;
}
