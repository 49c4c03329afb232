//! The client of Azure against an emulator that behaves as documented, at its best and at its worst.

mod emulator;

use emulator::{Emulator, Fault, GROUP};
use ipnet::IpNet;
use std::time::{Duration, Instant};
use weft_cloud::azure::{Azure, Settings};
use weft_cloud::{Cloud, CloudError, NodeRef, Wanted};

fn azure(emulator: &Emulator) -> Azure {
    let settings = Settings {
        endpoint: emulator.address.clone(),
        metadata: emulator.address.clone(),
        rate: 1000,
        burst: 1000,
        request_timeout: Duration::from_millis(800),
        operation_timeout: Duration::from_secs(10),
        ..Settings::default()
    };
    Azure::new(&settings).unwrap()
}

fn machine() -> NodeRef {
    NodeRef { name: "n1".into(), provider_id: format!("azure://{GROUP}/Microsoft.Compute/virtualMachines/vm1") }
}

fn instance() -> NodeRef {
    let id = format!("azure://{GROUP}/Microsoft.Compute/virtualMachineScaleSets/set/virtualMachines/0");
    NodeRef { name: "n2".into(), provider_id: id }
}

fn singles(count: u32) -> [Wanted; 1] {
    [Wanted { ipv6: false, length: 32, count }]
}

#[tokio::test]
async fn addresses_come_and_go_on_machines_and_scale_sets() {
    let emulator = Emulator::start(100).await;
    emulator.world.lock().unwrap().looks = 2;
    let azure = azure(&emulator);
    for node in [machine(), instance()] {
        assert!(azure.assigned(&node).await.unwrap().is_empty());
        let given = azure.assign(&node, &singles(16)).await.unwrap();
        assert_eq!(given.len(), 16);
        assert_eq!(azure.assigned(&node).await.unwrap(), given);
        let some: Vec<IpNet> = given.iter().take(5).copied().collect();
        azure.unassign(&node, &some).await.unwrap();
        azure.unassign(&node, &some).await.unwrap();
        assert_eq!(azure.assigned(&node).await.unwrap().len(), 11);
        azure.restore(&node, &some).await.unwrap();
        assert_eq!(azure.assigned(&node).await.unwrap(), given);
    }
    assert_eq!(emulator.in_use(), 32);
    assert_eq!(emulator.world.lock().unwrap().tokens, 1, "one token does for all");
}

#[tokio::test]
async fn a_full_subnet_gives_what_it_has_and_then_says_so() {
    let emulator = Emulator::start(5).await;
    let azure = azure(&emulator);
    let given = azure.assign(&machine(), &singles(16)).await.unwrap();
    assert!((1..=5).contains(&given.len()), "{given:?}");
    let mut all = given.len();
    let error = loop {
        match azure.assign(&machine(), &singles(1)).await {
            Ok(now) => {
                assert!(now.len() > all);
                all = now.len();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CloudError::SubnetFull { .. }), "{error}");
    assert!(error.to_string().starts_with("the subnet is full"), "{error}");
    assert_eq!((all, emulator.in_use()), (5, 5));
}

#[tokio::test]
async fn blocks_and_both_families_come_and_go() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    let wanted = [Wanted { ipv6: false, length: 28, count: 3 }, Wanted { ipv6: true, length: 128, count: 4 }];
    let given = azure.assign(&machine(), &wanted).await.unwrap();
    let lengths: Vec<(bool, u8)> = given.iter().map(|net| (net.addr().is_ipv6(), net.prefix_len())).collect();
    assert_eq!(lengths, [[(false, 28); 3].as_slice(), &[(true, 128); 4]].concat());
    assert_eq!(emulator.in_use(), 3 * 16 + 4);
    let some: Vec<IpNet> = given.iter().skip(2).take(2).copied().collect();
    azure.unassign(&machine(), &some).await.unwrap();
    assert_eq!(emulator.in_use(), 2 * 16 + 3);
    azure.restore(&machine(), &some).await.unwrap();
    assert_eq!(azure.assigned(&machine()).await.unwrap(), given);
    // Another node gets other ones.
    let more = azure.assign(&instance(), &[Wanted { ipv6: false, length: 28, count: 3 }]).await.unwrap();
    assert!(!more.is_empty() && more.is_disjoint(&given), "{more:?}");
}

#[tokio::test]
async fn an_interface_has_so_many_configurations_and_not_more() {
    let emulator = Emulator::start(2000).await;
    let azure = azure(&emulator);
    assert_eq!(azure.assign(&machine(), &singles(255)).await.unwrap().len(), 255);
    let error = azure.assign(&machine(), &singles(1)).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    assert_eq!(emulator.in_use(), 255);
}

#[tokio::test]
async fn what_is_not_ours_stays() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    let given: Vec<IpNet> = azure.assign(&machine(), &singles(4)).await.unwrap().into_iter().collect();
    // The interface's own address is nobody's to take, whoever asks.
    azure.unassign(&machine(), &["10.240.0.4/32".parse().unwrap()]).await.unwrap();
    azure.unassign(&machine(), &given).await.unwrap();
    assert_eq!((azure.assigned(&machine()).await.unwrap().len(), emulator.in_use()), (0, 0));
    assert_eq!(azure.assign(&machine(), &singles(2)).await.unwrap().len(), 2, "the interface is still whole");
}

#[tokio::test]
async fn operations_by_location_are_followed_through_throttling() {
    let emulator = Emulator::start(100).await;
    emulator.world.lock().unwrap().looks = 1;
    let azure = azure(&emulator);
    emulator.fault(Fault::ByLocation);
    let began = Instant::now();
    assert_eq!(azure.assign(&machine(), &singles(3)).await.unwrap().len(), 3);
    assert!(began.elapsed() >= Duration::from_secs(1), "the look was not put off");
    assert_eq!(emulator.world.lock().unwrap().puts, 1, "an operation that goes on is not begun again");
}

#[tokio::test]
async fn tokens_are_renewed_before_they_end() {
    let emulator = Emulator::start(100).await;
    // Ends in a second, less than what a token is renewed ahead of its end.
    emulator.world.lock().unwrap().token_lasts = 1;
    let azure = azure(&emulator);
    azure.assigned(&machine()).await.unwrap();
    azure.assigned(&machine()).await.unwrap();
    assert_eq!(emulator.world.lock().unwrap().tokens, 1);
    let began = Instant::now();
    while emulator.world.lock().unwrap().tokens < 2 {
        assert!(began.elapsed() < Duration::from_secs(30), "the token is not renewed");
        azure.assigned(&machine()).await.unwrap();
    }
}

#[tokio::test]
async fn the_metadata_service_may_refuse_throttle_and_fail() {
    for (status, after, retry_after) in [(429, Some("7"), Some(7)), (500, None, None), (400, None, None)] {
        let emulator = Emulator::start(100).await;
        emulator.world.lock().unwrap().token_faults.push_back((status, after));
        let azure = azure(&emulator);
        let error = azure.assigned(&machine()).await.unwrap_err();
        let right = match status {
            429 => matches!(error, CloudError::Throttled { .. }),
            500 => matches!(error, CloudError::Unavailable { .. }),
            _ => matches!(error, CloudError::Forbidden { .. }),
        };
        assert!(right, "{status}: {error}");
        assert_eq!(error.retry_after(), retry_after.map(Duration::from_secs), "{error}");
        assert!(azure.assigned(&machine()).await.unwrap().is_empty(), "{status}: the next one works");
    }
}

#[tokio::test]
async fn what_is_refused_is_told_by_what_it_means() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    let answer = |status: u16, code: &str| {
        Fault::Answer(status, Vec::new(), format!(r#"{{"error":{{"code":"{code}","message":"no"}}}}"#))
    };
    type Test = fn(&CloudError) -> bool;
    let cases: [(u16, &str, Test); 7] = [
        (400, "PrivateIPAddressQuotaExceeded", |error| matches!(error, CloudError::Quota { .. })),
        (409, "OperationNotAllowed", |error| matches!(error, CloudError::Conflict { .. })),
        (403, "AuthorizationFailed", |error| matches!(error, CloudError::Forbidden { .. })),
        (400, "InvalidParameter", |error| matches!(error, CloudError::Refused { .. })),
        (503, "ServiceUnavailable", |error| matches!(error, CloudError::Unavailable { .. })),
        (400, "AnotherOperationInProgress", |error| matches!(error, CloudError::Conflict { .. })),
        (429, "OperationPreempted", |error| matches!(error, CloudError::Throttled { .. })),
    ];
    for (status, code, test) in cases {
        emulator.fault(answer(status, code));
        let error = azure.assigned(&machine()).await.unwrap_err();
        assert!(test(&error), "{status} {code}: {error:?}");
        if status == 429 {
            // Without a word on how long, it is not for ever.
            assert_eq!(error.retry_after(), Some(Duration::from_secs(10)));
        }
    }
}

#[tokio::test]
async fn conflicts_begin_anew_and_end_at_some_time() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    emulator.fault(Fault::Meddle);
    emulator.fault(Fault::Meddle);
    assert_eq!(azure.assign(&machine(), &singles(4)).await.unwrap().len(), 4);
    assert_eq!(emulator.in_use(), 4, "nothing of the refused writes is left");
    for _ in 0..20 {
        emulator.fault(Fault::Meddle);
    }
    let error = azure.assign(&machine(), &singles(4)).await.unwrap_err();
    assert!(matches!(error, CloudError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn operations_that_fail_at_their_end_have_failed() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    emulator.fault(Fault::FailLater("InternalServerError"));
    assert!(azure.assign(&machine(), &singles(1)).await.is_err());
    emulator.fault(Fault::FailLater("SubnetIsFull"));
    let error = azure.assign(&machine(), &singles(1)).await.unwrap_err();
    assert!(matches!(error, CloudError::SubnetFull { .. }), "{error}");
    emulator.fault(Fault::FailLater("NetworkInterfaceQuotaExceeded"));
    let error = azure.assign(&machine(), &singles(1)).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    assert_eq!(emulator.in_use(), 0);
}

#[tokio::test]
async fn throttling_is_obeyed() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    let throttled = |seconds: &str| {
        let body = r#"{"error":{"code":"TooManyRequests","message":"slow down"}}"#.to_owned();
        Fault::Answer(429, vec![("retry-after", seconds.to_owned())], body)
    };
    emulator.fault(throttled("1"));
    let began = Instant::now();
    assert!(azure.assigned(&machine()).await.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1), "a short one is waited out");
    emulator.fault(throttled("37"));
    let error = azure.assigned(&machine()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(37)), "{error}");
    // Until then nobody asks at all.
    let before = emulator.world.lock().unwrap().requests;
    assert!(tokio::time::timeout(Duration::from_millis(200), azure.assigned(&machine())).await.is_err());
    assert_eq!(emulator.world.lock().unwrap().requests, before);
}

#[tokio::test]
async fn tokens_are_renewed_when_they_are_refused() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    azure.assigned(&machine()).await.unwrap();
    emulator.revoke_tokens();
    azure.assigned(&machine()).await.unwrap();
    assert_eq!(emulator.world.lock().unwrap().tokens, 2);
    // One that is refused at once again is no matter of time.
    emulator.world.lock().unwrap().tokens = 0;
    for _ in 0..3 {
        emulator.fault(Fault::Answer(401, Vec::new(), r#"{"error":{"code":"AuthenticationFailed"}}"#.to_owned()));
    }
    emulator.revoke_tokens();
    let error = azure.assigned(&machine()).await.unwrap_err();
    assert!(matches!(error, CloudError::Forbidden { .. }), "{error}");
}

#[tokio::test]
async fn what_was_done_before_the_answer_was_lost_is_found() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    emulator.fault(Fault::Cut);
    assert!(azure.assign(&machine(), &singles(3)).await.is_err());
    assert_eq!(azure.assigned(&machine()).await.unwrap().len(), 3);
    emulator.fault(Fault::Slow(Duration::from_secs(5)));
    let error = azure.assigned(&machine()).await.unwrap_err();
    assert!(matches!(error, CloudError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn hostile_answers_are_errors_and_get_no_token() {
    let emulator = Emulator::start(100).await;
    let azure = azure(&emulator);
    let ok = |body: &str| Fault::Answer(200, Vec::new(), body.to_owned());
    let bodies = [
        "",
        "[]",
        "null",
        "{",
        "{}",
        r#"{"properties":7}"#,
        r#"{"properties":{"networkProfile":{"networkInterfaces":[]}}}"#,
        r#"{"properties":{"networkProfile":{"networkInterfaces":[{"id":7}]}}}"#,
        r#"{"properties":{"networkProfile":{"networkInterfaces":[{"id":"/subscriptions/../x"}]}}}"#,
        r#"{"properties":{"networkProfile":{"networkInterfaces":[{"id":"http://evil/subscriptions/networkInterfaces/x"}]}}}"#,
    ];
    for body in bodies {
        emulator.fault(ok(body));
        let error = azure.assigned(&machine()).await.expect_err(body);
        assert!(matches!(error, CloudError::InvalidAnswer { .. }), "{body}: {error}");
    }
    let big = format!("\"{}\"", "x".repeat(9 << 20));
    emulator.fault(ok(&big));
    assert!(azure.assigned(&machine()).await.is_err());
    // An operation at somebody else's server is not followed.
    for place in ["http://192.0.2.1/operations/1", "//evil", "", "/operations/0"] {
        emulator.fault(Fault::Answer(200, Vec::new(), machine_json()));
        emulator.fault(Fault::Answer(200, Vec::new(), nic_json("10.241.0.77")));
        emulator.fault(Fault::Answer(202, vec![("azure-asyncoperation", place.to_owned())], String::new()));
        let error = azure.assign(&machine(), &singles(1)).await.expect_err(place);
        assert!(error.to_string().contains("another server"), "{place}: {error}");
    }
    for address in ["x", "10.0.0.0.1", "10.0.0.1/8", "::/129"] {
        emulator.fault(Fault::Answer(200, Vec::new(), machine_json()));
        emulator.fault(Fault::Answer(200, Vec::new(), nic_json(address)));
        let error = azure.assigned(&machine()).await.expect_err(address);
        assert!(matches!(error, CloudError::InvalidAnswer { .. }), "{address}: {error}");
    }
    for id in [
        "",
        "aws:///i-1",
        "azure:///subscriptions/a/../../x/virtualMachines/y",
        "azure://x",
        "azure:///subscriptions/a?b/virtualMachines/y",
    ] {
        let node = NodeRef { name: "n".into(), provider_id: id.into() };
        assert!(matches!(azure.assigned(&node).await, Err(CloudError::InvalidAnswer { .. })), "{id}");
    }
    let gone =
        NodeRef { name: "n".into(), provider_id: format!("azure://{GROUP}/Microsoft.Compute/virtualMachines/none") };
    assert!(matches!(azure.assigned(&gone).await, Err(CloudError::NotFound { .. })));
}

fn machine_json() -> String {
    let nic = format!("{GROUP}/Microsoft.Network/networkInterfaces/nic1");
    format!(r#"{{"properties":{{"networkProfile":{{"networkInterfaces":[{{"id":"{nic}"}}]}}}}}}"#)
}

fn nic_json(address: &str) -> String {
    format!(
        r#"{{"etag":"1","properties":{{"ipConfigurations":[
        {{"name":"ipconfig1","properties":{{"primary":true,"subnet":{{"id":"/s"}},"privateIPAddress":"10.0.0.4"}}}},
        {{"name":"weft-1","properties":{{"privateIPAddress":"{address}"}}}}]}}}}"#
    )
}
