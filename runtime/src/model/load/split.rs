//! A GGUF model in several files: `<name>-00001-of-00003.gguf` and so on.

use escadre_verify::structure::gguf::{Gguf, Value};
use escadre_verify::{Reason, Refusal};

/// The place of a file among the parts of a model, by its name.
struct Place<'a> {
    stem: &'a str,
    /// From 1.
    number: usize,
    count: usize,
}

fn place(file: &str) -> Option<Place<'_>> {
    let (stem, extension) = file.rsplit_once('.')?;
    let (stem, count) = stem
        .rsplit_once("-of-")
        .filter(|_| extension.eq_ignore_ascii_case("gguf"))?;
    let (stem, number) = stem.rsplit_once('-')?;
    let digits = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    Some(Place {
        stem,
        number: digits(number)?,
        count: digits(count)?,
    })
}

/// The files of one model in their order: a single file, or all parts of a split one.
pub(super) fn parts(files: &[&str]) -> Result<Vec<String>, Refusal> {
    let Some(first) = files.first().and_then(|file| place(file)) else {
        return match files {
            [file] => Ok(vec![(*file).to_owned()]),
            _ => Err(several(files)),
        };
    };
    let mut sorted: Vec<_> = files
        .iter()
        .map(|file| place(file).map(|place| (place, *file)))
        .collect();
    sorted.sort_by_key(|place| place.as_ref().map_or(0, |(place, _)| place.number));
    let is_same = |place: &Place<'_>| place.stem == first.stem && place.count == first.count;
    let Some(sorted) = sorted.into_iter().collect::<Option<Vec<_>>>() else {
        return Err(several(files));
    };
    if !sorted.iter().all(|(place, _)| is_same(place)) {
        return Err(several(files));
    }
    let missing = (1..=first.count).find(|number| !sorted.iter().any(|(place, _)| place.number == *number));
    if let Some(number) = missing {
        let name = format!("{}-{number:05}-of-{:05}.gguf", first.stem, first.count);
        return Err(Refusal::new(
            Reason::FileMissing,
            "a part of the model is missing; fetch it or name it in the list of files",
        )
        .in_file(name));
    }
    if sorted.len() != first.count {
        return Err(several(files));
    }
    Ok(sorted.into_iter().map(|(_, file)| file.to_owned()).collect())
}

fn several(files: &[&str]) -> Refusal {
    Refusal::new(
        Reason::FormatRefused,
        "there are several GGUF files that are not the parts of one model; name one model",
    )
    .values("one .gguf file, or all its parts", files.join(", "))
}

/// Refuses a file that says that it is another part than its name does.
pub(super) fn check(file: &str, gguf: &Gguf, index: usize, count: usize) -> Result<(), Refusal> {
    let number = |key: &str, default: usize| match gguf.get(key).map(Value::as_u64) {
        None => Some(default),
        Some(value) => value.and_then(|value| usize::try_from(value).ok()),
    };
    let found = (number("split.no", 0), number("split.count", 1));
    // A file that was never split may say 0.
    if found == (Some(index), Some(count)) || (count == 1 && found == (Some(0), Some(0))) {
        return Ok(());
    }
    let text = |number: Option<usize>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let found = format!("part {} of {}", text(found.0.map(|number| number + 1)), text(found.1));
    Err(Refusal::new(
        Reason::GgufInvalid,
        "the file is another part of a split model than its name says",
    )
    .in_file(file)
    .values(format!("part {} of {count}", index + 1), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_in_order() {
        let files = [
            "m-00002-of-00003.gguf",
            "m-00003-of-00003.gguf",
            "m-00001-of-00003.gguf",
        ];
        let sorted = [
            "m-00001-of-00003.gguf",
            "m-00002-of-00003.gguf",
            "m-00003-of-00003.gguf",
        ];
        assert_eq!(parts(&files).unwrap(), sorted);
        assert_eq!(parts(&["model.gguf"]).unwrap(), ["model.gguf"]);
        assert_eq!(parts(&["a-of-b.gguf"]).unwrap(), ["a-of-b.gguf"]);
    }

    #[test]
    fn what_is_not_one_whole_model_is_refused() {
        let table: [(&[&str], Reason); 6] = [
            (&["a.gguf", "b.gguf"], Reason::FormatRefused),
            (&["m-00001-of-00002.gguf"], Reason::FileMissing),
            (&["m-00001-of-00002.gguf", "m-00003-of-00002.gguf"], Reason::FileMissing),
            (
                &["m-00001-of-00002.gguf", "n-00002-of-00002.gguf"],
                Reason::FormatRefused,
            ),
            (&["m-00001-of-00002.gguf", "other.gguf"], Reason::FormatRefused),
            (
                &["m-00000-of-00001.gguf", "m-00001-of-00001.gguf"],
                Reason::FormatRefused,
            ),
        ];
        for (files, reason) in table {
            assert_eq!(parts(files).unwrap_err().reason, reason, "{files:?}");
        }
    }

    #[test]
    fn a_part_must_be_the_one_that_its_name_says() {
        let gguf = |values: &[(&str, u16)]| Gguf {
            metadata: values
                .iter()
                .map(|(key, value)| ((*key).to_owned(), Value::U16(*value)))
                .collect(),
            tensors: Vec::new(),
        };
        let second = gguf(&[("split.no", 1), ("split.count", 2)]);
        assert!(check("m", &second, 1, 2).is_ok());
        assert!(check("m", &gguf(&[]), 0, 1).is_ok());
        for (gguf, index, count) in [(&second, 0, 2), (&second, 1, 3), (&second, 0, 1), (&gguf(&[]), 1, 2)] {
            assert_eq!(check("m", gguf, index, count).unwrap_err().reason, Reason::GgufInvalid);
        }
    }
}
