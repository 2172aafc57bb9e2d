#![no_main]

use bluehook_fuzz::{appliance, ask};

// `TOKEN` in the input stands for what opens the API, so that the routes behind it are met too.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let appliance = appliance();
    let mut request = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(5).position(|word| word == b"TOKEN") {
        request.extend_from_slice(&rest[..at]);
        request.extend_from_slice(appliance.token.as_bytes());
        rest = &rest[at + 5..];
    }
    request.extend_from_slice(rest);
    // A stream of events does not end.
    if request.windows(6).any(|word| word.eq_ignore_ascii_case(b"stream")) {
        return;
    }
    let statuses = ask(appliance.page, &request);
    let opened = request.windows(appliance.token.len()).any(|w| w == appliance.token.as_bytes());
    assert!(opened || statuses.iter().all(|status| *status >= 400), "{statuses:?}");
});
