//! The record of decisions about what is served: one line of JSON for each, every one with the hash of the line before.
//!
//! A decision is that a spec is followed or not (`Accepted`), or that bytes were found to be the right ones or not
//! (`ModelVerified`). Lines go to standard output, apart from the log, which goes to standard error. A line that is
//! changed or left out later breaks the chain: `previous` is the SHA-256 of the line before, without its end. Each process
//! begins a chain of its own with `number` 1 and 64 zeros.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use escadre_crds::LlmDeployment;
use escadre_crds::condition::ConditionType;
use escadre_crds::v1alpha1::LlmDeploymentStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::controllers::llm_deployment::revision::sha256;

/// Conditions that are decisions.
const DECISIONS: [ConditionType; 2] = [ConditionType::Accepted, ConditionType::ModelVerified];

/// The record.
pub struct Audit(Mutex<Chain>);

struct Chain {
    number: u64,
    previous: String,
    out: Box<dyn Write + Send>,
}

/// One decision.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    kind: &'static str,
    number: u64,
    previous: &'a str,
    time: String,
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    generation: Option<i64>,
    decision: &'a str,
    result: &'a str,
    reason: &'a str,
    message: &'a str,
    source: &'a str,
    wanted_digest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    served_digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    policies: &'a [String],
}

impl Audit {
    /// A record that goes to standard output.
    pub fn to_stdout() -> Self {
        Self::to(Box::new(io::stdout()))
    }

    /// A record that goes anywhere.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(Chain {
            number: 0,
            previous: "0".repeat(64),
            out,
        }))
    }

    /// Writes down the decisions in which two statuses of an object differ. `policies` are those that applied.
    pub fn record(
        &self,
        object: &LlmDeployment,
        (before, after): (&LlmDeploymentStatus, &LlmDeploymentStatus),
        policies: &[String],
        now: Timestamp,
    ) {
        let (namespace, uid) = (object.namespace().unwrap_or_default(), object.uid().unwrap_or_default());
        for condition in decided(&before.conditions, &after.conditions) {
            let verification = after.verification.as_ref();
            self.write(Line {
                kind: "Decision",
                number: 0,
                previous: "",
                time: now.to_string(),
                namespace: &namespace,
                name: &object.name_any(),
                uid: &uid,
                generation: object.metadata.generation,
                decision: &condition.type_,
                result: &condition.status,
                reason: &condition.reason,
                message: &condition.message,
                source: &object.spec.model.source,
                wanted_digest: &object.spec.model.verification.digest,
                served_digest: after.served_digest.as_deref(),
                method: verification.and_then(|verification| verification.method.as_deref()),
                signer: verification.and_then(|verification| verification.signer.as_deref()),
                license: after.model.as_ref().and_then(|model| model.license.as_deref()),
                policies,
            });
        }
    }

    fn write(&self, line: Line<'_>) {
        let mut chain = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_string(&Line {
            number: chain.number + 1,
            previous: &chain.previous,
            ..line
        });
        let text = text.expect("lines are plain structs");
        let written = writeln!(chain.out, "{text}").and_then(|()| chain.out.flush());
        if let Err(error) = written {
            tracing::error!(%error, line = text, "a decision could not be written down");
        }
        chain.number += 1;
        chain.previous = sha256(text.as_bytes());
    }
}

/// Conditions that are decisions, and were not so before.
fn decided<'a>(before: &[Condition], after: &'a [Condition]) -> Vec<&'a Condition> {
    let is_news = |now: &&Condition| {
        let was = before.iter().find(|was| was.type_ == now.type_);
        was.is_none_or(|was| (&was.status, &was.reason, &was.message) != (&now.status, &now.reason, &now.message))
    };
    let decisions = DECISIONS.iter().filter_map(|decision| {
        let name: &str = decision.into();
        after.iter().find(|one| one.type_ == name)
    });
    decisions
        .filter(|one| one.status != "Unknown")
        .filter(is_news)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn object() -> LlmDeployment {
        serde_json::from_value(json!({
            "apiVersion": "escadre.dev/v1alpha1", "kind": "LlmDeployment",
            "metadata": {"name": "support", "namespace": "models", "uid": "u", "generation": 3},
            "spec": {"model": {"source": "hf://owner/name", "verification": {"digest": "sha256:00"}}},
        }))
        .unwrap()
    }

    fn status(accepted: (&str, &str), verified: (&str, &str)) -> LlmDeploymentStatus {
        let condition = |type_: &str, (status, reason): (&str, &str)| json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-11-29T00:00:00Z"});
        serde_json::from_value(json!({
            "conditions": [
                condition("Accepted", accepted), condition("ModelVerified", verified), condition("Ready", ("True", "x")),
            ],
            "verification": {"signer": "key sha256:ab", "method": "Signature"},
            "model": {"license": "MIT"},
        }))
        .unwrap()
    }

    #[test]
    fn every_decision_is_a_line_and_every_line_holds_the_one_before() {
        let kept = Kept::default();
        let audit = Audit::to(Box::new(kept.clone()));
        let none = LlmDeploymentStatus::default();
        let pending = status(("True", "Valid"), ("Unknown", "Pending"));
        let refused = status(("True", "Valid"), ("False", "KeyNotTrusted"));
        let kept_out = status(("False", "PolicyViolation"), ("False", "KeyNotTrusted"));
        let policies = ["prod".to_owned()];
        for (before, after) in [
            (&none, &pending),
            (&pending, &refused),
            (&refused, &refused),
            (&refused, &kept_out),
        ] {
            audit.record(&object(), (before, after), &policies, Timestamp::UNIX_EPOCH);
        }
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let parsed: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told =
            |line: &Value| format!("{} {} {}", line["decision"], line["result"], line["reason"]).replace('"', "");
        assert_eq!(
            parsed.iter().map(told).collect::<Vec<_>>(),
            [
                "Accepted True Valid",
                "ModelVerified False KeyNotTrusted",
                "Accepted False PolicyViolation"
            ]
        );
        assert_eq!(parsed[0]["previous"], "0".repeat(64));
        for (index, pair) in lines.windows(2).enumerate() {
            assert_eq!(parsed[index + 1]["previous"], sha256(pair[0].as_bytes()));
            assert_eq!(parsed[index + 1]["number"], index + 2);
        }
        assert_eq!(
            (&parsed[1]["signer"], &parsed[1]["license"]),
            (&json!("key sha256:ab"), &json!("MIT"))
        );
        assert_eq!(parsed[1]["policies"], json!(["prod"]));
    }
}
