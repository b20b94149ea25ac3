//! The name that programs ask the loader for: it changes when a program built against an older one would no longer work.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsksm.so.0");
}
