// For tests: specs of every kind that needs no calibration.
#pragma once

namespace kvquant::test {

inline constexpr const char* kSpecs[] = {
    "fp16",
    "bf16,block=64",
    "fp32",
    "k=fp32,v=nuq3-1%",
    "k=fp16,v=bf16",
    "nuq4",
    "nuq3-1%,block=64",
    "nuq2-5%,sink=3,recent=10,block=64",
    "k=nuq4-0.5%,v=fp16,block=64",
    "k=bf16,v=nuq3-2%,sink=1,recent=0,block=128",
    "nuq4-1%,layers=1:fp16,sink=70,recent=65",
    "nuq3,layers=0:k=nuq2-3%,recent=1,sink=0,block=64",
    "int8,block=64",
    "int4,sink=2,recent=30",
    "k=nuq4-1%,v=had+nuq4-2%,block=64",
    "k=int8,v=had+int4,layers=1:v=had+int8",
    "k=fp16,v=lnns,block=64",
    "k=bf16,v=lnns+int8,sink=3,recent=30,block=64",
    "k=nuq4-1%,v=lnns+nuq3-5%,block=128,layers=0:v=lnns",
    "k=fp32,v=lnns+int4,sink=70,recent=65",
    "k=lnns,v=fp16,block=64",
    "k=lnns+int8,v=bf16,sink=3,recent=30,block=64",
    "k=lnns+nuq3-5%,v=nuq4-1%,block=128,layers=0:v=lnns+int4",
    "k=lnns+int4,v=had+int8,sink=70,recent=65,layers=1:k=lnns",
};

}  // namespace kvquant::test
