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
    assert_eq!(error.patience(), Some(Duration::from_secs(37)), "{error}");
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
        assert!(matches!(error, CloudError::Nonsense { .. }), "{body}: {error}");
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
        assert!(matches!(error, CloudError::Nonsense { .. }), "{address}: {error}");
    }
    for id in [
        "",
        "aws:///i-1",
        "azure:///subscriptions/a/../../x/virtualMachines/y",
        "azure://x",
        "azure:///subscriptions/a?b/virtualMachines/y",
    ] {
        let node = NodeRef { name: "n".into(), provider_id: id.into() };
        assert!(matches!(azure.assigned(&node).await, Err(CloudError::Nonsense { .. })), "{id}");
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
