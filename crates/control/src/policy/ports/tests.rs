use super::*;
use weft_model::id::RuleId;
use weft_model::intent::RuleAction;

fn numbers(prefixes: &[PortPrefix]) -> Vec<u16> {
    let mut ports: Vec<u16> = prefixes
        .iter()
        .flat_map(|p| (0..1u32 << (16 - p.prefix_len)).map(|n| u16::try_from(u32::from(p.port) + n).unwrap()))
        .collect();
    ports.sort_unstable();
    ports
}

fn allow(rule: u32) -> Verdict {
    Verdict { action: Action::Allow, precedence: precedence::ALLOW, rule: RuleId(rule) }
}

fn deny(rule: u32) -> Verdict {
    Verdict { action: Action::Deny, precedence: precedence::DENY, rule: RuleId(rule) }
}

fn admin(priority: u16, action: RuleAction, rule: u32) -> Verdict {
    let says = match action {
        RuleAction::Allow => Action::Allow,
        RuleAction::Deny => Action::Deny,
        RuleAction::Pass => Action::Pass,
    };
    Verdict { action: says, precedence: precedence::admin(priority, 0, action), rule: RuleId(rule) }
}

const EXACT: PortPrefix = PortPrefix { protocol: 6, port: 8080, prefix_len: 16 };

fn lower(ports: PortPrefix) -> EntryKey {
    EntryKey { admin: false, ports }
}

fn upper(ports: PortPrefix) -> EntryKey {
    EntryKey { admin: true, ports }
}

#[test]
fn ranges_split_exactly() {
    assert_eq!(split(6, 0, u16::MAX), [PortPrefix { protocol: 6, port: 0, prefix_len: 0 }]);
    assert_eq!(split(6, 80, 80), [PortPrefix { protocol: 6, port: 80, prefix_len: 16 }]);
    assert_eq!(split(6, 1024, u16::MAX).len(), 6);
    assert_eq!(split(6, 1, u16::MAX - 1).len(), 30);
    assert!(split(6, 2, 1).is_empty());
    for (first, last) in [(1, 65534), (0, 0), (65535, 65535), (8000, 8100), (1000, 1024), (3, 40000)] {
        let prefixes = split(17, first, last);
        assert!(prefixes.len() <= 30);
        assert_eq!(numbers(&prefixes), (first..=last).collect::<Vec<_>>(), "{first}-{last}");
    }
}

#[test]
fn reduction_keeps_the_widest() {
    let wide = shorten(EXACT, 8);
    let none = Entries::new();
    let entries = reduce(vec![(EXACT, allow(1)), (wide, allow(3)), (wide, allow(2))], &none);
    assert_eq!(entries, Entries::from([(lower(wide), allow(2))]));
    assert!(reduce(vec![(EXACT, allow(1))], &Entries::from([(lower(ANYTHING), allow(9))])).is_empty());
    let udp = PortPrefix { protocol: 17, ..EXACT };
    assert_eq!(reduce(vec![(EXACT, allow(1)), (udp, allow(1))], &none).len(), 2);
    let entries = reduce(vec![(EXACT, allow(1)), (ANYTHING, allow(5))], &none);
    assert_eq!(entries, Entries::from([(lower(ANYTHING), allow(5))]));
}

#[test]
fn a_deny_stays_beside_a_wide_allow_and_replaces_a_narrow_one() {
    let none = Entries::new();
    let entries = reduce(vec![(ANYTHING, allow(1)), (EXACT, deny(2))], &none);
    assert_eq!(entries.len(), 2, "a narrow deny is no part of a wide allow");
    let entries = reduce(vec![(EXACT, allow(1)), (ANYTHING, deny(2))], &none);
    assert_eq!(entries, Entries::from([(lower(ANYTHING), deny(2))]), "nothing gets past a wide deny");
    let entries = reduce(vec![(EXACT, allow(1)), (EXACT, deny(2))], &none);
    assert_eq!(entries, Entries::from([(lower(EXACT), deny(2))]));
    let any = Entries::from([(lower(ANYTHING), allow(9))]);
    assert_eq!(reduce(vec![(EXACT, deny(2))], &any).len(), 1);
}

#[test]
fn the_admin_tier_stands_apart() {
    let none = Entries::new();
    // A pass overrides entries of its own tier only.
    let (pass, later) = (admin(3, RuleAction::Pass, 1), admin(5, RuleAction::Deny, 2));
    let entries = reduce(vec![(ANYTHING, pass), (EXACT, later), (EXACT, allow(3))], &none);
    assert_eq!(entries, Entries::from([(upper(ANYTHING), pass), (lower(EXACT), allow(3))]));
    // A deny of the Admin tier keeps them too: an entry of the peer's prefix may pass both.
    let entries = reduce(vec![(ANYTHING, later), (EXACT, allow(3))], &none);
    assert_eq!(entries.len(), 2);
    let (first, second) = (admin(1, RuleAction::Allow, 1), admin(2, RuleAction::Deny, 2));
    let entries = reduce(vec![(EXACT, first), (ANYTHING, second)], &none);
    assert_eq!(entries.len(), 2, "the first decides for its port, the second for the others");
    assert!(precedence::admin(1000, 255, RuleAction::Allow) >= precedence::ADMIN);
    assert!(precedence::baseline(0, 0, RuleAction::Deny) < precedence::ALLOW);
}

#[test]
fn only_plain_growth_is_growth() {
    let narrow = Entries::from([(lower(EXACT), allow(1))]);
    let wide = Entries::from([(lower(ANYTHING), allow(2))]);
    let mixed = Entries::from([(lower(ANYTHING), allow(2)), (lower(EXACT), deny(3))]);
    assert!(only_grows(&narrow, &wide) && only_grows(&Entries::new(), &wide));
    assert!(!only_grows(&wide, &narrow) && !only_grows(&narrow, &mixed) && !only_grows(&mixed, &wide));
}
