//! Which function a line of a Rust source is of: compilers call inlined functions by half of their names.

/// The functions of a file in formatted source, by the line that each begins with.
#[derive(Default)]
pub struct Functions(Vec<(usize, String)>);

impl Functions {
    pub fn of(source: &str) -> Self {
        let mut functions = Vec::new();
        let mut owner = None;
        for (number, line) in source.lines().enumerate() {
            if line.starts_with("impl") || line.starts_with("unsafe impl") {
                owner = implemented(line);
            } else if line.starts_with('}') {
                owner = None;
            }
            if let Some(name) = declared(line) {
                let name = match &owner {
                    Some(owner) => format!("{owner}::{name}"),
                    None => name.to_owned(),
                };
                functions.push((number + 1, name));
            }
        }
        Self(functions)
    }

    /// The function that the line is in. `said` is what the compiler calls it, which goes for what a macro has made.
    pub fn at(&self, line: usize, said: &str) -> Option<String> {
        let after = self.0.partition_point(|(begins, _)| *begins <= line);
        let (_, here) = self.0.get(after.checked_sub(1)?)?;
        let said = last(said);
        let own = said.is_empty() || said.starts_with('{') || last(here) == said;
        Some(if own { here.clone() } else { said.to_owned() })
    }
}

/// The type of an `impl`, without what it is generic over.
fn implemented(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("impl")?;
    let rest = rest.split_once(" for ").map_or(rest, |(_, rest)| rest);
    let rest = match rest.strip_prefix('<') {
        Some(generics) => generics.split_once("> ")?.1,
        None => rest,
    };
    let name: String = (rest.trim().chars())
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

fn declared(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let words = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "unsafe",
        "extern",
        "\"C\"",
    ];
    let end = after.find(['(', '<'])?;
    let qualified = before.split_whitespace().all(|word| words.contains(&word));
    qualified.then_some(&after[..end])
}

/// The last part of a path, without what it is generic over.
fn last(path: &str) -> &str {
    let path = match path.strip_prefix('<') {
        // `<Type as Trait>::name`.
        Some(_) => path.rsplit_once(">::").map_or(path, |(_, name)| name),
        None => path,
    };
    let path = path.split('<').next().unwrap_or(path).trim_end_matches(':');
    path.rsplit("::").next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
fn free(a: u8) {
    a.map(|b| b)
}

impl<'a> Batch<'a> {
    /// Not a fn of its own.
    pub(crate) fn look(&self) {
    }
    unsafe extern \"C\" fn raw<T>(x: T) {
        x
    }
}

unsafe impl Drop for Guard<'_> {
    fn drop(&mut self) {
    }
}

made! { one, two }
";

    #[test]
    fn lines_are_their_functions() {
        let functions = Functions::of(SOURCE);
        let at = |line, said| functions.at(line, said).unwrap();
        assert_eq!(at(2, "{closure#0}"), "free");
        assert_eq!(at(7, "<sksm::batch::Batch>::look"), "Batch::look");
        assert_eq!(at(10, "raw<u64>"), "Batch::raw");
        assert_eq!(
            at(15, "<sksm::Guard as core::ops::Drop>::drop"),
            "Guard::drop"
        );
        assert_eq!(at(15, ""), "Guard::drop");
        // A macro's functions are nowhere in the source.
        assert_eq!(at(19, "one"), "one");
        assert_eq!(Functions::default().at(3, "x"), None);
    }
}
