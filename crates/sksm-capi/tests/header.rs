//! `include/sksm.h` is what cbindgen makes of the source. To bring it up to date: `SKSM_UPDATE=1 cargo test -p sksm-capi`.

use std::path::Path;

/// The library's version, for the preprocessor.
fn version() -> String {
    format!(
        "\n\
         /*\n \
         The version of this header.\n \
         */\n\
         #define SKSM_VERSION_MAJOR {}\n\
         #define SKSM_VERSION_MINOR {}\n\
         #define SKSM_VERSION_PATCH {}\n\
         #define SKSM_VERSION \"{}\"",
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
        env!("CARGO_PKG_VERSION"),
    )
}

fn made() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(version());
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(here.join("src/lib.rs"))
        .generate()
        .unwrap()
        .write(&mut made);
    let made = String::from_utf8(made).unwrap();
    // cbindgen's own comments are not C89's.
    let ends = ["  // extern \"C\"", "  // __cplusplus", " // __cplusplus"];
    ends.iter().fold(made, |made, end| made.replace(end, ""))
}

#[test]
fn the_header_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/sksm.h");
    let made = made();
    if std::env::var_os("SKSM_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "include/sksm.h is not what src/lib.rs says; SKSM_UPDATE=1 cargo test -p sksm-capi updates it"
    );
}

/// Its comments are made of Rust's, and read by people who know C.
#[test]
fn the_header_speaks_of_c() {
    let made = made();
    for word in [
        "`", "# Safety", "# Errors", "//", "::", "Option", "Result", "None", "Rust", "rust",
        "usize", "unsafe", "crate", "panic",
    ] {
        assert!(!made.contains(word), "{word}");
    }
}
