//! Licence texts, told by the words that only they begin with.

/// Words of a text, in lower case and with single spaces, that must all be there, and the licence that has them. The
/// first line that fits counts, so that the more special stands before the more general.
const MARKS: [(&[&str], &str); 19] = [
    (&["apache license", "version 2.0, january 2004"], "Apache-2.0"),
    (&["llama 2 community license agreement"], "LicenseRef-llama2"),
    (&["llama 3.1 community license agreement"], "LicenseRef-llama3.1"),
    (&["llama 3.2 community license agreement"], "LicenseRef-llama3.2"),
    (&["llama 3.3 community license agreement"], "LicenseRef-llama3.3"),
    (&["llama 4 community license agreement"], "LicenseRef-llama4"),
    (&["llama 3 community license agreement"], "LicenseRef-llama3"),
    (&["gemma terms of use"], "LicenseRef-gemma"),
    (&["qwen research license agreement"], "LicenseRef-qwen-research"),
    (&["qwen license agreement"], "LicenseRef-qwen"),
    (&["mistral ai research license"], "LicenseRef-mrl"),
    (&["mistral ai non-production license"], "LicenseRef-mnpl"),
    (&["deepseek license agreement"], "LicenseRef-deepseek"),
    (&["attribution-noncommercial 4.0 international"], "CC-BY-NC-4.0"),
    (&["attribution-sharealike 4.0 international"], "CC-BY-SA-4.0"),
    (&["attribution 4.0 international"], "CC-BY-4.0"),
    (
        &[
            "permission is hereby granted, free of charge",
            "the software is provided \"as is\"",
        ],
        "MIT",
    ),
    (
        &[
            "redistribution and use in source and binary forms",
            "neither the name of",
        ],
        "BSD-3-Clause",
    ),
    (&["redistribution and use in source and binary forms"], "BSD-2-Clause"),
];

/// The SPDX expression of a licence's text. `None`: it is not one of those that are known.
pub(super) fn recognise(text: &str) -> Option<&'static str> {
    let words: Vec<_> = text.split_whitespace().map(str::to_lowercase).collect();
    let text = words.join(" ");
    let found = MARKS
        .iter()
        .find(|(marks, _)| marks.iter().all(|mark| text.contains(mark)));
    found.map(|(_, license)| *license)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_by_their_words() {
        let table = [
            (
                "                                 Apache License\n           Version 2.0, January 2004\n",
                Some("Apache-2.0"),
            ),
            ("META LLAMA 3 COMMUNITY LICENSE\nAGREEMENT", Some("LicenseRef-llama3")),
            ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", Some("LicenseRef-llama3.1")),
            ("Qwen RESEARCH LICENSE AGREEMENT", Some("LicenseRef-qwen-research")),
            (
                "Creative Commons\nAttribution-NonCommercial 4.0 International",
                Some("CC-BY-NC-4.0"),
            ),
            ("All rights reserved.", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(recognise(text), expected, "{text}");
        }
        assert_eq!(recognise(include_str!("../../../LICENSE")), Some("Apache-2.0"));
    }

    #[test]
    fn every_mark_names_a_licence() {
        for (_, license) in MARKS {
            assert!(super::super::License::parse(license).is_ok(), "{license}");
        }
    }
}
