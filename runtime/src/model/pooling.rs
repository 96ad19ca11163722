//! From the states of a text's tokens to one vector for the text.

use super::batch::StatesWanted;
use escadre_verify::structure::gguf::Value as GgufValue;
use serde_json::Value;

/// Which states become the vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, clap::ValueEnum)]
#[strum(serialize_all = "lowercase")]
pub enum Pooling {
    /// The mean of all of them.
    Mean,
    /// That of the first token, which sees nothing but itself in a decoder.
    Cls,
    /// That of the last token.
    Last,
}

impl Pooling {
    /// What a GGUF file says: llama.cpp's `pooling_type`. Absent: nothing, or something that gives no vector of a text.
    pub(super) fn from_gguf(value: Option<&GgufValue>) -> Option<Self> {
        match value?.as_u64()? {
            1 => Some(Self::Mean),
            2 => Some(Self::Cls),
            3 => Some(Self::Last),
            _ => None,
        }
    }

    /// What `1_Pooling/config.json` of Sentence Transformers says. Absent: another way, or several at once.
    pub(super) fn from_config(config: &Value) -> Option<Self> {
        let modes = [
            ("pooling_mode_mean_tokens", Some(Self::Mean)),
            ("pooling_mode_cls_token", Some(Self::Cls)),
            ("pooling_mode_lasttoken", Some(Self::Last)),
            ("pooling_mode_max_tokens", None),
            ("pooling_mode_mean_sqrt_len_tokens", None),
            ("pooling_mode_weightedmean_tokens", None),
        ];
        let mut chosen = modes.into_iter().filter(|(name, _)| config[*name] == true);
        let (_, pooling) = chosen.next()?;
        pooling.filter(|_| chosen.next().is_none())
    }
}

/// The states of a text so far.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pooling: Pooling,
    sum: Vec<f64>,
    count: u32,
}

impl Pool {
    pub(crate) fn new(pooling: Pooling) -> Self {
        Self {
            pooling,
            sum: vec![],
            count: 0,
        }
    }

    /// Forgets everything: the text is computed again from its beginning.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(self.pooling);
    }

    /// Which states are needed of a part of the text.
    pub(crate) fn wanted(&self, is_first: bool, is_last: bool) -> StatesWanted {
        match self.pooling {
            Pooling::Mean => StatesWanted::All,
            Pooling::Cls if is_first => StatesWanted::First,
            Pooling::Last if is_last => StatesWanted::Last,
            Pooling::Cls | Pooling::Last => StatesWanted::None,
        }
    }

    /// Takes a state.
    pub(crate) fn add(&mut self, state: &[f32]) {
        self.sum.resize(state.len(), 0.0);
        for (sum, value) in self.sum.iter_mut().zip(state) {
            *sum += f64::from(*value);
        }
        self.count += 1;
    }

    /// The vector, of length 1. Absent when it has no direction: a number is not finite, or all are zero.
    pub(crate) fn finish(&self) -> Option<Vec<f32>> {
        let vector: Vec<f64> = self.sum.iter().map(|sum| sum / f64::from(self.count.max(1))).collect();
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
        let unit = || vector.iter().map(|value| (value / length) as f32).collect();
        (length.is_finite() && length > 0.0).then(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_say_how_vectors_are_made() {
        assert_eq!(Pooling::from_gguf(None), None);
        for (code, pooling) in [(0, None), (1, Some(Pooling::Mean)), (3, Some(Pooling::Last)), (4, None)] {
            assert_eq!(Pooling::from_gguf(Some(&GgufValue::U32(code))), pooling);
        }
        let last =
            json!({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true});
        assert_eq!(Pooling::from_config(&last), Some(Pooling::Last));
        let both = json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true});
        assert_eq!(Pooling::from_config(&both), None);
        assert_eq!(Pooling::from_config(&Value::Null), None);
    }

    #[test]
    fn vector_has_length_one_and_no_direction_is_none() {
        let mut pool = Pool::new(Pooling::Mean);
        pool.add(&[6.0, 0.0]);
        pool.add(&[0.0, 8.0]);
        assert_eq!(pool.finish().unwrap(), [0.6, 0.8]);
        pool.restart();
        assert_eq!(pool.finish(), None);
        pool.add(&[f32::NAN, 1.0]);
        assert_eq!(pool.finish(), None);
    }

    #[test]
    fn only_what_is_needed_is_asked_for() {
        let wanted = |pooling, is_first, is_last| Pool::new(pooling).wanted(is_first, is_last);
        assert_eq!(wanted(Pooling::Mean, false, false), StatesWanted::All);
        assert_eq!(wanted(Pooling::Last, true, false), StatesWanted::None);
        assert_eq!(wanted(Pooling::Last, false, true), StatesWanted::Last);
        assert_eq!(wanted(Pooling::Cls, true, true), StatesWanted::First);
    }
}
