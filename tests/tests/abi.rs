//! The C header of the ABI and its Rust mirror say the same, in both directions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use ecs_tests::cc::Compiler;
use ecs_tests::header::{self, Header};
use ecs_tests::{root, skip, slow};

/// Everything that is compared: what it is, and its figures as text.
type Facts = BTreeMap<String, String>;

const HEADER: &str = "virtio_ecs.h";

fn folder() -> PathBuf {
    root().join("guest-driver/uapi")
}

fn header() -> Header {
    header::parse(&std::fs::read_to_string(folder().join(HEADER)).unwrap()).unwrap()
}

/// A C program that prints every fact of the header, one a line.
fn program(header: &Header) -> String {
    let mut text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"{HEADER}\"\nint main(void)\n{{\n"
    );
    for name in &header.constants {
        writeln!(
            text,
            "printf(\"{name} = %llu\\n\", (unsigned long long)({name}));"
        )
        .unwrap();
    }
    for found in &header.structs {
        let name = &found.name;
        writeln!(
            text,
            "printf(\"struct {name} = %lu bytes\\n\", (unsigned long)sizeof(struct {name}));"
        )
        .unwrap();
        for (field, _) in &found.fields {
            writeln!(
                text,
                "printf(\"{name}.{field} = %lu bytes at %lu\\n\", \
                 (unsigned long)sizeof(((struct {name} *)0)->{field}), \
                 (unsigned long)offsetof(struct {name}, {field}));"
            )
            .unwrap();
        }
    }
    text.push_str("return 0;\n}\n");
    text
}

fn facts_of_c(compiler: &Compiler, options: &[&str]) -> Facts {
    let printed = compiler
        .output_of(&program(&header()), &folder(), options)
        .unwrap();
    printed
        .lines()
        .map(|line| {
            let (name, figures) = line.split_once(" = ").unwrap();
            (name.to_owned(), figures.to_owned())
        })
        .collect()
}

fn facts_of_rust() -> Facts {
    let mut facts = Facts::new();
    for (name, value) in ecs_abi::CONSTANTS {
        facts.insert((*name).to_owned(), value.to_string());
    }
    for (name, size, fields) in ecs_abi::STRUCTS {
        facts.insert(format!("struct {name}"), format!("{size} bytes"));
        for field in *fields {
            facts.insert(
                format!("{name}.{}", field.name),
                format!("{} bytes at {}", field.size, field.offset),
            );
        }
    }
    facts
}

/// Every fact on which the two differ, one a line.
fn differences(c: &Facts, rust: &Facts) -> Vec<String> {
    let mut names: Vec<&String> = c.keys().chain(rust.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| c.get(*name) != rust.get(*name))
        .map(|name| {
            let say = |facts: &Facts| facts.get(name).map_or("missing", String::as_str).to_owned();
            format!("{name}: {} in {HEADER}, {} in ecs-abi", say(c), say(rust))
        })
        .collect()
}

fn assert_same(c: &Facts, rust: &Facts) {
    let differences = differences(c, rust);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn header_and_mirror_are_the_same() {
    let compiler = match Compiler::c("cc") {
        Ok(compiler) => compiler,
        Err(reason) => skip!("header_and_mirror_are_the_same", "{reason}"),
    };
    let (c, rust) = (
        facts_of_c(&compiler, &["-Wall", "-Wextra", "-Werror"]),
        facts_of_rust(),
    );
    assert_same(&c, &rust);
    // What the text says must be what the compiler printed, or something was not compared.
    let header = header();
    let nr_fields: usize = header.structs.iter().map(|found| found.fields.len()).sum();
    assert_eq!(
        c.len(),
        header.constants.len() + header.structs.len() + nr_fields
    );
    assert_eq!(header.structs.len(), ecs_abi::STRUCTS.len());
    assert_eq!(header.constants.len(), ecs_abi::CONSTANTS.len());
}

/// Needs no compiler: names, order and sizes of the fields, as they are written.
#[test]
fn fields_are_written_in_the_same_order() {
    let header = header();
    for (name, _, fields) in ecs_abi::STRUCTS {
        let found = header
            .structs
            .iter()
            .find(|found| found.name == *name)
            .unwrap();
        let mirror: Vec<(String, usize)> = fields
            .iter()
            .map(|field| (field.name.to_owned(), field.size))
            .collect();
        assert_eq!(found.fields, mirror, "{name}");
    }
}

#[test]
fn every_kind_of_difference_is_found() {
    let rust = facts_of_rust();
    let changes: [(&str, Option<&str>); 5] = [
        ("VIRTIO_ECS_NEW", Some("1")),
        ("VIRTIO_ECS_MAGIC", Some("0")),
        ("VIRTIO_ECS_VERSION", None),
        ("virtio_ecs_event.data", Some("8 bytes at 16")),
        ("struct virtio_ecs_new", Some("8 bytes")),
    ];
    for (name, figures) in changes {
        let mut c = rust.clone();
        match figures {
            Some(figures) => c.insert(name.to_owned(), figures.to_owned()),
            None => c.remove(name),
        };
        let found = differences(&c, &rust);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found.iter().all(|line| line.starts_with(name)), "{found:?}");
    }
}

#[test]
fn header_has_no_implicit_padding() {
    match Compiler::c("cc") {
        Ok(compiler) => compiler
            .check(
                &folder().join(HEADER),
                &["-Wall", "-Wextra", "-Wpadded", "-Werror"],
            )
            .unwrap(),
        Err(reason) => skip!("header_has_no_implicit_padding", "{reason}"),
    }
}

#[test]
fn header_compiles_as_cxx() {
    match Compiler::cxx("c++") {
        Ok(compiler) => compiler
            .check(
                &folder().join(HEADER),
                &["-Wall", "-Wextra", "-Wpadded", "-Werror"],
            )
            .unwrap(),
        Err(reason) => skip!("header_compiles_as_cxx", "{reason}"),
    }
}

#[test]
fn layout_is_the_same_for_every_compiler_and_standard() {
    slow!("layout_is_the_same_for_every_compiler_and_standard");
    let rust = facts_of_rust();
    let mut tried = 0;
    for program in ["cc", "gcc", "clang"] {
        let Ok(compiler) = Compiler::c(program) else {
            continue;
        };
        for option in [
            "-std=gnu89",
            "-std=gnu99",
            "-std=gnu11",
            "-std=gnu17",
            "-std=gnu23",
            "-O2",
        ] {
            if compiler.accepts(option) {
                assert_same(&facts_of_c(&compiler, &[option]), &rust);
                tried += 1;
            }
        }
    }
    if tried == 0 {
        skip!(
            "layout_is_the_same_for_every_compiler_and_standard",
            "no C compiler works here"
        );
    }
}
