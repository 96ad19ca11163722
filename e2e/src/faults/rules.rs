//! What goes wrong, when, and how often. Pure: the same seed and the same calls give the same faults.

use std::time::Duration;

use super::call::{Call, Verb};

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It waits before it is executed.
    Delay(Duration),
    /// It is not executed; 409 Conflict.
    Conflict,
    /// It is not executed; 429 with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// It is not executed; 500.
    ServerError,
    /// It is executed; the answer is cut in the middle of its body.
    CutAnswer,
    /// A watch: it ends without a word after this long.
    EndWatch(Duration),
    /// A watch: HTTP 410, the version that it starts from is gone.
    GoneAtOnce,
    /// A watch: it begins, and its first event says that the version is gone.
    GoneAsEvent,
}

impl Fault {
    fn fits(self, verb: Verb) -> bool {
        match self {
            Self::Delay(_) | Self::TooManyRequests(_) | Self::ServerError => true,
            // "Somebody else was faster" is an answer to writes alone.
            Self::Conflict => verb.is_write(),
            Self::CutAnswer => verb != Verb::Watch,
            Self::EndWatch(_) | Self::GoneAtOnce | Self::GoneAsEvent => verb == Verb::Watch,
        }
    }
}

/// Which calls go wrong, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    verbs: Vec<Verb>,
    resource: Option<String>,
    fault: Fault,
    chance: f64,
    left: Option<u32>,
}

impl Rule {
    /// Every call to which the fault can happen.
    pub fn always(fault: Fault) -> Self {
        Self {
            verbs: Vec::new(),
            resource: None,
            fault,
            chance: 1.0,
            left: None,
        }
    }

    /// Only these verbs.
    #[must_use]
    pub fn verbs(mut self, verbs: &[Verb]) -> Self {
        self.verbs = verbs.to_vec();
        self
    }

    /// Only verbs that write.
    #[must_use]
    pub fn writes(self) -> Self {
        self.verbs(&[
            Verb::Create,
            Verb::Update,
            Verb::Patch,
            Verb::Delete,
            Verb::DeleteCollection,
        ])
    }

    /// Only this resource, as RBAC writes it (`pods`, `llmdeployments.escadre.dev/status`).
    #[must_use]
    pub fn on(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only the first `count` calls that it fits.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.left = Some(count);
        self
    }

    /// Only this share of the calls that it fits, from 0 to 1.
    #[must_use]
    pub fn chance(mut self, chance: f64) -> Self {
        self.chance = chance;
        self
    }

    fn fits(&self, call: &Call) -> bool {
        self.left != Some(0)
            && self.fault.fits(call.verb)
            && (self.verbs.is_empty() || self.verbs.contains(&call.verb))
            && self.resource.as_ref().is_none_or(|resource| *resource == call.resource)
    }
}

/// Everything at once: each write is refused, fails, is delayed or loses its answer with this chance, each read and each
/// watch with about half of it.
pub fn bad_weather(chance: f64) -> Vec<Rule> {
    let reads = [Verb::Get, Verb::List];
    let watches = [Verb::Watch];
    let half = chance / 2.0;
    vec![
        Rule::always(Fault::Conflict).writes().chance(chance),
        Rule::always(Fault::TooManyRequests(1)).writes().chance(chance),
        Rule::always(Fault::ServerError).writes().chance(chance),
        Rule::always(Fault::CutAnswer).writes().chance(chance),
        Rule::always(Fault::Delay(Duration::from_millis(300)))
            .writes()
            .chance(chance),
        Rule::always(Fault::ServerError).verbs(&reads).chance(half),
        Rule::always(Fault::CutAnswer).verbs(&reads).chance(half),
        Rule::always(Fault::ServerError).verbs(&watches).chance(half),
        Rule::always(Fault::GoneAtOnce).verbs(&watches).chance(half),
        Rule::always(Fault::GoneAsEvent).verbs(&watches).chance(half),
        Rule::always(Fault::EndWatch(Duration::from_secs(5)))
            .verbs(&watches)
            .chance(half),
    ]
}

/// Rules and their dice.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    dice: Dice,
}

impl Rules {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rules: Vec::new(),
            dice: Dice::new(seed),
        }
    }

    pub(super) fn set(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// What happens to this call: the fault of the first rule that takes it.
    pub(super) fn judge(&mut self, call: &Call) -> Option<Fault> {
        for rule in &mut self.rules {
            if !rule.fits(call) || (rule.chance < 1.0 && self.dice.share() >= rule.chance) {
                continue;
            }
            if let Some(left) = &mut rule.left {
                *left -= 1;
            }
            return Some(rule.fault);
        }
        None
    }
}

/// Numbers that look random and repeat with the seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice for one seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let wide = (u128::from(self.number()) * (end as u128)) >> 64;
        usize::try_from(wide).unwrap_or_default()
    }

    /// A share: from 0 up to, but not, 1.
    pub fn share(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what the type has")]
        let bits = (self.number() >> 11) as f64;
        bits / 9_007_199_254_740_992.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn call(method: &Method, path: &str) -> Call {
        Call::read(method, path, None)
    }

    fn pod_create() -> Call {
        call(&Method::POST, "/api/v1/namespaces/a/pods")
    }

    #[test]
    fn rule_takes_only_its_verbs_its_resource_and_its_number_of_calls() {
        let mut rules = Rules::new(1);
        rules.set(vec![
            Rule::always(Fault::ServerError)
                .verbs(&[Verb::Create])
                .on("pods")
                .times(2),
        ]);
        assert_eq!(rules.judge(&call(&Method::GET, "/api/v1/namespaces/a/pods/b")), None);
        assert_eq!(rules.judge(&call(&Method::POST, "/api/v1/namespaces/a/services")), None);
        assert_eq!(rules.judge(&pod_create()), Some(Fault::ServerError));
        assert_eq!(rules.judge(&pod_create()), Some(Fault::ServerError));
        assert_eq!(rules.judge(&pod_create()), None);
    }

    #[test]
    fn faults_fall_only_on_verbs_that_know_them() {
        let mut rules = Rules::new(1);
        let read = call(&Method::GET, "/api/v1/pods");
        let watch = Call::read(&Method::GET, "/api/v1/pods", Some("watch=true"));
        rules.set(vec![Rule::always(Fault::Conflict)]);
        assert_eq!((rules.judge(&read), rules.judge(&watch)), (None, None));
        rules.set(vec![Rule::always(Fault::GoneAtOnce)]);
        assert_eq!(
            (rules.judge(&read), rules.judge(&watch)),
            (None, Some(Fault::GoneAtOnce))
        );
        rules.set(vec![Rule::always(Fault::CutAnswer)]);
        assert_eq!(
            (rules.judge(&read), rules.judge(&watch)),
            (Some(Fault::CutAnswer), None)
        );
        rules.set(vec![Rule::always(Fault::ServerError)]);
        assert_eq!(
            (rules.judge(&read), rules.judge(&watch)),
            (Some(Fault::ServerError), Some(Fault::ServerError))
        );
    }

    #[test]
    fn same_seed_gives_the_same_faults_in_about_the_wanted_share() {
        let run = |seed| {
            let mut rules = Rules::new(seed);
            rules.set(vec![Rule::always(Fault::Conflict).chance(0.25)]);
            (0..1000)
                .map(|_| rules.judge(&pod_create()).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let hits = run(7).into_iter().filter(|hit| *hit).count();
        assert!((200..300).contains(&hits), "{hits}");
    }
}
