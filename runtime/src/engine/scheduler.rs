//! Who gets how many tokens of the next step. Pure.
//!
//! Invariants: every sequence that generates gets its one token in every step, so a long prompt never stalls running
//! answers; prompts get what is left of the step's budget, in the order of arrival; some token is always computed.

/// One sequence's part in the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Its place in the list that was planned for.
    pub(crate) index: usize,
    /// How many tokens.
    pub(crate) tokens: usize,
}

/// Plans a step. `pending` has for each sequence, in the order of arrival, how many tokens of its prompt are still to
/// be computed; 0 for one that generates.
pub(crate) fn plan(pending: &[usize], budget: usize) -> Vec<Share> {
    let mut shares: Vec<Share> = pending
        .iter()
        .enumerate()
        .filter(|(_, tokens)| **tokens == 0)
        .map(|(index, _)| Share { index, tokens: 1 })
        .collect();
    let mut left = budget.saturating_sub(shares.len()).max(usize::from(shares.is_empty()));
    for (index, &tokens) in pending.iter().enumerate().filter(|(_, tokens)| **tokens > 0) {
        if left == 0 {
            break;
        }
        let tokens = tokens.min(left);
        left -= tokens;
        shares.push(Share { index, tokens });
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pending: &[usize], budget: usize) -> Vec<(usize, usize)> {
        plan(pending, budget)
            .into_iter()
            .map(|share| (share.index, share.tokens))
            .collect()
    }

    #[test]
    fn generating_sequences_come_first_and_prompts_share_the_rest() {
        assert_eq!(shares(&[0, 300, 0, 5], 128), [(0, 1), (2, 1), (1, 126)]);
        assert_eq!(shares(&[100, 50], 128), [(0, 100), (1, 28)]);
        assert_eq!(shares(&[], 128), []);
    }

    #[test]
    fn progress_is_made_in_every_step_of_any_load() {
        for budget in 0..6 {
            let mut pending = vec![7, 0, 3, 11];
            for _ in 0..100 {
                let step = plan(&pending, budget);
                assert!(!step.is_empty());
                let generating = pending.iter().filter(|tokens| **tokens == 0).count();
                assert_eq!(
                    step.iter().filter(|share| pending[share.index] == 0).count(),
                    generating
                );
                for share in step {
                    assert!(share.tokens >= 1);
                    pending[share.index] = pending[share.index].saturating_sub(share.tokens);
                }
            }
            if budget > 4 {
                assert_eq!(pending, [0; 4]);
            }
        }
    }
}
