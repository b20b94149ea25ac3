//! Links the small object so that the loader's relocations dirty one page and no more: without the C runtime's start files,
//! whose data would dirty another, and with that data at the start of a page.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_STD").is_none() {
        println!("cargo::rustc-cdylib-link-arg=-nostartfiles");
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,separate-loadable-segments");
    }
}
