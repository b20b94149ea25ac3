//! `--what`: which kinds of memory.

use std::str::FromStr;

use sksm::Kinds;

/// A list of kinds, and as it was written.
#[derive(Clone)]
pub struct What {
    pub kinds: Kinds,
    pub list: String,
}

impl What {
    /// What verbs take that look at programs which run already, so that their data and heaps are written.
    pub const DEFAULT: &str = "text,data,heap";
}

impl FromStr for What {
    type Err = &'static str;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let kinds = Kinds::parse(list.as_bytes())
            .ok_or("give a list of text, data, heap, stack, as in text,heap")?;
        Ok(What {
            kinds,
            list: list.into(),
        })
    }
}
