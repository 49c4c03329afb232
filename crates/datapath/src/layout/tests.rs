use super::*;

fn layout() -> Layout {
    Layout { kind: 1, key_size: 16, value_size: 32, entries_max: 100, flags: 1 }
}

fn info(of: &Layout) -> bpf_map_info {
    bpf_map_info {
        type_: of.kind,
        key_size: of.key_size,
        value_size: of.value_size,
        max_entries: of.entries_max,
        map_flags: of.flags,
        id: 7,
        name: [0; 16],
        ifindex: 0,
        btf_vmlinux_value_type_id: 0,
        netns_dev: 0,
        netns_ino: 0,
        btf_id: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
        btf_vmlinux_id: 0,
        map_extra: 0,
    }
}

#[test]
fn the_same_is_the_same() {
    assert_eq!(compare(&info(&layout()), &layout()), Comparison::Same);
}

#[test]
fn another_size_can_be_moved_into() {
    assert_eq!(compare(&info(&Layout { entries_max: 5, ..layout() }), &layout()), Comparison::Movable);
    assert_eq!(compare(&info(&Layout { flags: 0, ..layout() }), &layout()), Comparison::Movable);
}

#[test]
fn another_meaning_is_named() {
    for (found, text) in [
        (Layout { kind: 9, ..layout() }, "its type is 9, expected 1"),
        (Layout { key_size: 4, ..layout() }, "its key size is 4, expected 16"),
        (Layout { value_size: 31, ..layout() }, "its value size is 31, expected 32"),
    ] {
        let Comparison::Foreign(difference) = compare(&info(&found), &layout()) else { panic!("{found:?}") };
        assert_eq!(difference.to_string(), text);
    }
}
