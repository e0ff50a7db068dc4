#include <gtest/gtest.h>

#include "wire/reader.hpp"
#include "wire/writer.hpp"

namespace lah::wire {
namespace {

Buffer bytes(std::initializer_list<int> values) {
  Buffer out;
  for (const int value : values)
    out.push_back(static_cast<std::byte>(value));
  return out;
}

TEST(WireReader, ReadsWhatTheWriterWrote) {
  Writer out;
  out.array(9).u64(UINT64_MAX).i64(-5).i64(5).f64(0.5).boolean(true).nil();
  out.bin(bytes({1, 2, 3})).str("text").array(2).u64(1).u64(2);
  const Buffer document = out.take();
  auto reader = Reader::parse(document);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->enter(9, 9), 9U);
  EXPECT_EQ(reader->u64(), UINT64_MAX);
  EXPECT_EQ(reader->i64(), -5);
  EXPECT_EQ(reader->i64(), 5);
  EXPECT_EQ(reader->f64(), 0.5);
  EXPECT_TRUE(reader->boolean());
  EXPECT_TRUE(reader->nil());
  EXPECT_EQ(reader->bin(0, 3).size(), 3U);
  EXPECT_EQ(reader->str(4), "text");
  EXPECT_EQ(reader->enter(0, 2), 2U);
  EXPECT_EQ(reader->u64(), 1U);
  reader->leave(); // skips what a newer peer appended
  reader->leave();
  EXPECT_TRUE(reader->ok());
}

TEST(WireReader, ErrorsStick) {
  Writer out;
  out.array(2).u64(7).u64(8);
  const Buffer document = out.take();
  auto reader = Reader::parse(document);
  ASSERT_TRUE(reader);
  reader->enter(2, 2);
  EXPECT_EQ(reader->u64(6), 0U); // above its maximum
  EXPECT_EQ(reader->u64(), 0U);
  EXPECT_TRUE(reader->str(9).empty());
  EXPECT_FALSE(reader->ok());
}

TEST(WireReader, TypesAndSizesAreChecked) {
  Writer out;
  out.array(1).bin(bytes({1, 2, 3, 4}));
  const Buffer document = out.take();
  const auto fails = [&](auto read) {
    auto reader = Reader::parse(document);
    reader->enter(1, 1);
    read(*reader);
    return !reader->ok();
  };
  EXPECT_TRUE(fails([](Reader& in) { in.u64(); }));
  EXPECT_TRUE(fails([](Reader& in) { in.str(9); }));
  EXPECT_TRUE(fails([](Reader& in) { in.bin(0, 3); }));
  EXPECT_TRUE(fails([](Reader& in) { in.bin(5, 9); }));
  EXPECT_TRUE(fails([](Reader& in) { in.fixed<3>(); }));
  EXPECT_TRUE(fails([](Reader& in) { in.enter(0, 9); }));
  EXPECT_FALSE(fails([](Reader& in) { in.fixed<4>(); }));
  EXPECT_TRUE(fails([](Reader& in) {
    in.skip();
    in.skip(); // past the end
  }));
  EXPECT_TRUE(fails([](Reader& in) {
    in.leave();
    in.leave(); // above the top
  }));
}

// dht-and-transport §5.16: five bytes must not cost eight gigabytes.
TEST(WireReader, BombsAreRefusedAtTheirHeader) {
  EXPECT_FALSE(Reader::parse(bytes({0xdd, 0x0f, 0xff, 0xff, 0xff})));
  Buffer nested;
  for (int level = 0; level < 240; ++level)
    append(nested, bytes({0xdd, 0x0f, 0xff, 0xff, 0xff}));
  EXPECT_FALSE(Reader::parse(nested));
  nested.clear();
  for (size_t level = 0; level <= Limits::kWireDepth; ++level)
    nested.push_back(std::byte{0x91});
  nested.push_back(std::byte{0x01});
  EXPECT_FALSE(Reader::parse(nested)); // one level too deep
  EXPECT_TRUE(Reader::parse(ByteView(nested).subspan(1)));
  EXPECT_FALSE(Reader::parse(bytes({0xc6, 0xff, 0xff, 0xff, 0xff})));
  EXPECT_FALSE(Reader::parse(bytes({0xdb, 0x7f, 0xff, 0xff, 0xff})));
  EXPECT_FALSE(Reader::parse(bytes({0x80})));       // a map
  EXPECT_FALSE(Reader::parse(bytes({0xd4, 1, 2}))); // an extension
  EXPECT_FALSE(Reader::parse(bytes({0xc1})));       // never used
}

TEST(WireReader, ElementsAreBoundedInAll) {
  Buffer wide = bytes({0xdc, 0x04, 0x00}); // 1024 arrays of 2
  for (int i = 0; i < 1024; ++i)
    append(wide, bytes({0x92, 0, 0}));
  EXPECT_FALSE(Reader::parse(wide));
}

TEST(WireReader, NothingMayFollowTheDocument) {
  EXPECT_TRUE(Reader::parse(bytes({0x91, 0x01})));
  EXPECT_FALSE(Reader::parse(bytes({0x91, 0x01, 0x01})));
  EXPECT_FALSE(Reader::parse(bytes({0x92, 0x01})));
  EXPECT_FALSE(Reader::parse({}));
}

} // namespace
} // namespace lah::wire
